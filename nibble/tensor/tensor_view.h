// What a piece of memory means, without owning it.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/tensor/dtype.h"
#include "nibble/tensor/shape.h"

namespace nibble {

// Read-only, dense, row-major. The bytes may lie in host or device memory: the holder knows.
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;  // num_elements * dtype_size

  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

}  // namespace nibble
