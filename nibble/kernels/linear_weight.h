// Weight matrices as a checkpoint stores them and as a backend keeps them.
#pragma once

#include <cstdint>

#include "nibble/numeric/fp8.h"

namespace nibble {

enum class LinearFormat { kF32, kBf16, kFp8Block, kNvfp4 };

// What happens to the activations of an NVFP4 linear: kept (W4A16 and its like), or quantized to
// NVFP4 themselves with the checkpoint's input_scale, as Blackwell's tensor cores do (W4A4).
enum class ActivationFormat { kUnquantized, kNvfp4 };

// A matrix [rows, cols] in host memory in the checkpoint's own layout: out = W x, rows outputs.
//
//   format     data                                  scales
//   kF32       float [rows, cols]                    -
//   kBf16      uint16 [rows, cols]                   -
//   kFp8Block  E4M3 [rows, cols]                     float [ceil(rows/128), ceil(cols/128)]
//   kNvfp4     2 E2M1 codes a byte [rows, cols/2],   E4M3 [rows, cols/16]; cols a multiple of 16
//              even column in bits 0-3
struct HostLinear {
  LinearFormat format = LinearFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  const void* data = nullptr;
  const void* scales = nullptr;
  float global_scale = 1;  // NVFP4's weight_scale_2
  float input_scale = 1;   // NVFP4's activation scale; used with ActivationFormat::kNvfp4
};

// The same matrix after Kernels::pack: `data` points into device memory, in a layout that only the
// backend that packed it knows. Does not own the memory.
struct LinearWeight {
  LinearFormat format = LinearFormat::kBf16;
  ActivationFormat activation = ActivationFormat::kUnquantized;
  int64_t rows = 0;  // out_features
  int64_t cols = 0;  // in_features
  const void* data = nullptr;
  const void* scales = nullptr;
  float global_scale = 1;
  float input_scale = 1;
};

// A SwiGLU MLP: down(silu(gate x) * (up x)). gate and up are [intermediate, hidden], down is
// [hidden, intermediate].
struct MlpWeight {
  LinearWeight gate_proj;
  LinearWeight up_proj;
  LinearWeight down_proj;
};

}  // namespace nibble
