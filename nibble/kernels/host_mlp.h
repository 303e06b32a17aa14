// Experts that a backend outside host memory lets the host compute, where they lie.
#pragma once

#include <span>

#include "nibble/kernels/linear_weight.h"

namespace nibble {

// One expert over the tokens that chose it.
struct HostMlpRun {
  const MlpWeight* weight = nullptr;  // in the backend's layout, but in host memory
  std::span<const float* const> x;    // [tokens] rows of gate_proj.cols floats
  std::span<float* const> out;        // [tokens] rows of down_proj.rows floats
};

// Kernels::mlp() on the host. Weights are dequantized exactly; sums are binary32 in an order of
// their own, so bits differ from the device's: the bounds are those of Kernels::mlp(), 2e-5 where
// activations are rounded to BF16 for NVFP4 weights, as GPUs do. A row's result never depends on
// the others. For one caller at a time.
class HostMlp {
 public:
  virtual ~HostMlp() = default;

  // "tiles avx512bf16, 64 threads".
  virtual const char* name() const = 0;

  virtual void run(std::span<const HostMlpRun> runs) = 0;
};

}  // namespace nibble
