// A checkpoint's linear layer as Kernels::pack takes it.
#pragma once

#include "nibble/base/check.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

inline LinearFormat linear_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return LinearFormat::kF32;
    case WeightFormat::kBf16:
      return LinearFormat::kBf16;
    case WeightFormat::kFp8Block:
      return LinearFormat::kFp8Block;
    case WeightFormat::kNvfp4:
      return LinearFormat::kNvfp4;
  }
  NIBBLE_CHECK(false);
  return LinearFormat::kF32;
}

// Points into `tensors`.
inline HostLinear host_linear(const LinearTensors& tensors, float input_scale) {
  return {linear_format(tensors.format),
          tensors.rows,
          tensors.cols,
          tensors.weight.bytes.data(),
          tensors.scales.bytes.data(),
          tensors.global_scale,
          input_scale};
}

}  // namespace nibble
