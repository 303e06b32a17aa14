// Activations as kernels see them.
#pragma once

#include <cstdint>

#include "nibble/tensor/dtype.h"

namespace nibble {

// A matrix [rows, cols] in device memory; row r starts at element r * stride. Does not own it.
struct MatrixView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // in elements, >= cols

  template <typename T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }

  // The rows [first, first + count).
  MatrixView slice_rows(int64_t first, int64_t count) const {
    MatrixView view = *this;
    view.data = static_cast<char*>(data) + first * stride * dtype_size(dtype);
    view.rows = count;
    return view;
  }

  // The columns [first, first + count) of every row.
  MatrixView slice_cols(int64_t first, int64_t count) const {
    MatrixView view = *this;
    view.data = static_cast<char*>(data) + first * dtype_size(dtype);
    view.cols = count;
    return view;
  }
};

}  // namespace nibble
