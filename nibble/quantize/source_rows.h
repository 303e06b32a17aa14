// Rows of a weight matrix of any stored format, as numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// Reads a matrix piece by piece, so that one larger than memory can be worked on: pages that were
// read are let go by release().
class SourceRows {
 public:
  // The matrix `module` of shape [rows, cols]. Errors: those of map_linear.
  static Result<SourceRows> open(const CheckpointSource& source, const std::string& module,
                                 int64_t rows, int64_t cols);

  const LinearTensors& linear() const { return linear_; }

  // Rows [begin, end) into out [end - begin, cols]. F32, BF16 and FP8 are rounded to BF16, as every
  // conversion does first; NVFP4 is exact in binary32. Errors: kCorrupt or kInvalidArgument naming
  // the tensor, row and column of a value that is not finite.
  Status read(int64_t begin, int64_t end, float* out) const;

  // The largest magnitude that read() of these rows gives. `scratch` is for its own use. Errors:
  // those of read().
  Result<float> amax(int64_t begin, int64_t end, std::vector<float>* scratch) const;

  void release(int64_t begin, int64_t end) const;

 private:
  SourceRows(const CheckpointSource& source, std::string module, LinearTensors linear)
      : source_(&source), module_(std::move(module)), linear_(std::move(linear)) {}
  Status read_unchecked(int64_t begin, int64_t end, float* out) const;

  const CheckpointSource* source_;
  std::string module_;
  LinearTensors linear_;
};

}  // namespace nibble
