#include "nibble/quantize/activation_copies.h"

#include <algorithm>
#include <span>

#include "nibble/base/check.h"
#include "nibble/numeric/bf16.h"

namespace nibble {

Result<MatrixView> DeviceMatrix::shaped(Kernels& kernels, int64_t rows, int64_t cols) {
  const DType dtype = kernels.activation_dtype();
  const auto bytes = static_cast<size_t>(rows * cols * dtype_size(dtype));
  if (buffer_.size() < bytes) {
    buffer_ = Buffer();
    buffer_ = NIBBLE_TRY(kernels.device().allocate(bytes));
  }
  return MatrixView{buffer_.data(), dtype, rows, cols, cols};
}

Status read_activations(Kernels& kernels, const MatrixView& from, std::vector<float>* out) {
  NIBBLE_CHECK(from.stride == from.cols);
  const auto count = static_cast<size_t>(from.rows * from.cols);
  out->resize(count);
  if (from.dtype == DType::kF32) {
    return kernels.device().copy_to_host(std::as_writable_bytes(std::span(*out)), from.data);
  }
  NIBBLE_CHECK(from.dtype == DType::kBf16);
  std::vector<uint16_t> halves(count);
  NIBBLE_TRY(kernels.device().copy_to_host(std::as_writable_bytes(std::span(halves)), from.data));
  std::transform(halves.begin(), halves.end(), out->begin(), bf16_to_float);
  return {};
}

Status write_activations(Kernels& kernels, const float* values, const MatrixView& to) {
  NIBBLE_CHECK(to.stride == to.cols);
  const std::span all(values, static_cast<size_t>(to.rows * to.cols));
  if (to.dtype == DType::kF32) {
    return kernels.device().copy_to_device(to.data, std::as_bytes(all));
  }
  NIBBLE_CHECK(to.dtype == DType::kBf16);
  std::vector<uint16_t> halves(all.size());
  std::transform(all.begin(), all.end(), halves.begin(), float_to_bf16);
  return kernels.device().copy_to_device(to.data, std::as_bytes(std::span(halves)));
}

}  // namespace nibble
