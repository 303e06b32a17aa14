#include "tests/kernels/mla_helpers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/kernels/reference/rows.h"

namespace nibble {

TestRope::TestRope(int64_t positions, int64_t half) : max_positions(positions), half_dim(half) {
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) / (1 + 2 * static_cast<double>(i));
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

TestCache::TestCache(DType dtype, int64_t entry_size, int64_t block_size,
                     const std::vector<int64_t>& sequence_lengths)
    : dtype_(dtype), entry_size_(entry_size), block_size_(block_size), lengths_(sequence_lengths) {
  for (const int64_t length : lengths_) num_blocks_ += (length + block_size - 1) / block_size;
  ++num_blocks_;  // one that nobody owns
  std::vector<int32_t> free(static_cast<size_t>(num_blocks_));
  std::iota(free.begin(), free.end(), 0);
  std::mt19937 rng(99);
  std::shuffle(free.begin(), free.end(), rng);
  for (const int64_t length : lengths_) {
    tables_.emplace_back();
    for (int64_t p = 0; p < length; p += block_size) {
      tables_.back().push_back(free.back());
      free.pop_back();
    }
  }
  // 0xff is NaN in all three types.
  bytes_.assign(static_cast<size_t>(num_blocks_ * block_size * entry_size * dtype_size(dtype)),
                0xff);
}

KvCacheView TestCache::view() {
  return {bytes_.data(), dtype_, num_blocks_, block_size_, entry_size_};
}

void TestCache::fill(uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(entry_size_));
  for (size_t s = 0; s < lengths_.size(); ++s) {
    for (int64_t p = 0; p < lengths_[s]; ++p) {
      for (float& v : values) v = normal(rng);
      write_cache_entry(view(), view().entry_offset(block_table(s), p), values.data());
    }
  }
}

std::vector<float> TestCache::entry(size_t sequence, int64_t position) {
  std::vector<float> values(static_cast<size_t>(entry_size_));
  read_cache_entry(view(), view().entry_offset(block_table(sequence), position), values.data());
  return values;
}

MlaShape real_mla_shape(int64_t num_heads) { return {num_heads, 512, 128, 64, 128, 0.13523378f}; }

MlaShape odd_mla_shape(int64_t num_heads) { return {num_heads, 40, 20, 6, 12, 0.3f}; }

TestWeight random_kv_b_proj(LinearFormat format, const MlaShape& shape, uint32_t seed) {
  return TestWeight::random(format, shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim),
                            shape.kv_lora_rank, seed);
}

}  // namespace nibble
