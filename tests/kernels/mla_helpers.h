// Caches, batches and rotary tables for tests of the MLA operations.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/kernels/kernels.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {

// Angles that grow with position and differ between pairs.
struct TestRope {
  TestRope(int64_t max_positions, int64_t half_dim);
  RopeTable table() const { return {cos.data(), sin.data(), max_positions, half_dim}; }
  int64_t max_positions;
  int64_t half_dim;
  std::vector<float> cos;
  std::vector<float> sin;
};

// A paged cache whose unused entries are NaN, and the block tables of its sequences: blocks are
// handed out in a scrambled order, so that a position is not its place in memory.
class TestCache {
 public:
  TestCache(DType dtype, int64_t entry_size, int64_t block_size,
            const std::vector<int64_t>& sequence_lengths);
  KvCacheView view();
  const int32_t* block_table(size_t sequence) const { return tables_[sequence].data(); }
  // Random entries at all positions of all sequences, rounded to the cache's type.
  void fill(uint32_t seed);
  // One entry, element by element, as binary32.
  std::vector<float> entry(size_t sequence, int64_t position);
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  DType dtype_;
  int64_t entry_size_;
  int64_t block_size_;
  int64_t num_blocks_ = 0;
  std::vector<int64_t> lengths_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<uint8_t> bytes_;
};

// The widths of DeepSeek-R1 with fewer heads.
MlaShape real_mla_shape(int64_t num_heads);
// Widths that are no multiple of anything.
MlaShape odd_mla_shape(int64_t num_heads);

TestWeight random_kv_b_proj(LinearFormat format, const MlaShape& shape, uint32_t seed);

}  // namespace nibble
