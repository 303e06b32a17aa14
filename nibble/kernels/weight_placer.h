// Backends that choose the NUMA node of resident weights.
#pragma once

#include <cstdint>

#include "nibble/kernels/linear_weight.h"

namespace nibble {

// A second interface of Kernels that have host memory on several nodes (dynamic_cast finds it), for
// who loads weights that stay. What is packed again and again while the model runs is not placed:
// each call costs the system a change of the process's mappings. Any number of threads may call.
class WeightPlacer {
 public:
  virtual ~WeightPlacer() = default;

  // How many matrices are about to be placed, small ones included. Those that were placed before
  // are taken for gone.
  virtual void expect_weights(int64_t matrices) = 0;

  // To be called before pack() of this matrix into this memory of the backend's device.
  virtual void place_weight(void* destination, LinearFormat format, int64_t rows, int64_t cols) = 0;
};

}  // namespace nibble
