// Activations of any backend as floats of the host, and back.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

// A matrix in the backend's memory that grows as needed; what it held is lost then.
class DeviceMatrix {
 public:
  // [rows, cols] of the backend's activation type. Errors: kOutOfMemory.
  Result<MatrixView> shaped(Kernels& kernels, int64_t rows, int64_t cols);

 private:
  Buffer buffer_;
};

// out becomes [rows, cols]; exact. Waits for the work that writes `from`. Errors: those of the
// device.
Status read_activations(Kernels& kernels, const MatrixView& from, std::vector<float>* out);

// values [to.rows, to.cols]; rounded where the backend's activations are BF16.
Status write_activations(Kernels& kernels, const float* values, const MatrixView& to);

}  // namespace nibble
