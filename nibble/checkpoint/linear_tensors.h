// The tensors that make up one linear layer's weight, whatever its format.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"
#include "nibble/tensor/tensor_view.h"

namespace nibble {

enum class WeightFormat { kF32, kBf16, kFp8Block, kNvfp4 };

// A weight [rows, cols] of logical shape (NVFP4 counts two columns a byte).
struct LinearTensors {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  TensorView weight;                 // as stored
  TensorView scales;                 // FP8: weight_scale_inv; NVFP4: weight_scale; else empty
  float global_scale = 1;            // NVFP4: weight_scale_2
  std::optional<float> input_scale;  // NVFP4, where the checkpoint has one
};

// Finds the format of module `module` ("model.layers.3.mlp.gate_proj") and its companions, and
// checks them: NVFP4 iff `.weight` is U8 and `.weight_scale` exists; scalars of shape [] or [1], F32
// or BF16. Errors name the tensor: kNotFound (missing weight or companion), kCorrupt (a shape other
// than [rows, cols] asks for, with both; NaN, infinite, zero or negative scales; a block scale with
// its sign bit set or 0x7F, with its place; an FP8 NaN code), kUnsupported (another dtype,
// pre_quant_scale).
Result<LinearTensors> read_linear(const CheckpointSource& source, std::string_view module,
                                  int64_t rows, int64_t cols);

}  // namespace nibble
