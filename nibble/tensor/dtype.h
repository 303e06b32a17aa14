// Element types of tensors, under the names that safetensors gives them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

enum class DType {
  kBool,
  kU8,
  kI8,
  kF8E4m3,
  kF8E5m2,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64
};

// Bytes of one element.
int64_t dtype_size(DType dtype);

// "F8_E4M3", "BF16", "F32", ...
std::string_view dtype_name(DType dtype);

// The type of that name, or nothing.
std::optional<DType> parse_dtype(std::string_view name);

}  // namespace nibble
