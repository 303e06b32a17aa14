#include "nibble/checkpoint/finite_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"

namespace nibble {

namespace {

// The index of the first value whose exponent is all ones, or the count.
template <typename Bits>
size_t first_not_finite(std::span<const std::byte> bytes, Bits exponent) {
  const auto* const values = reinterpret_cast<const Bits*>(bytes.data());
  const size_t count = bytes.size() / sizeof(Bits);
  constexpr size_t kRun = 4096;  // looked through without a branch for each value
  for (size_t begin = 0; begin < count; begin += kRun) {
    const size_t end = std::min(begin + kRun, count);
    bool is_bad = false;
    for (size_t i = begin; i < end; ++i) is_bad |= (values[i] & exponent) == exponent;
    if (!is_bad) continue;
    for (size_t i = begin; i < end; ++i) {
      if ((values[i] & exponent) == exponent) return i;
    }
  }
  return count;
}

}  // namespace

Status check_finite_part(const TensorInfo& info, std::span<const std::byte> bytes, size_t offset) {
  size_t size = 0;
  size_t bad = 0;
  float value = 0;
  if (info.dtype == DType::kF32) {
    size = sizeof(uint32_t);
    bad = first_not_finite<uint32_t>(bytes, 0x7f800000);
    if (bad < bytes.size() / size) value = reinterpret_cast<const float*>(bytes.data())[bad];
  } else if (info.dtype == DType::kBf16) {
    size = sizeof(uint16_t);
    bad = first_not_finite<uint16_t>(bytes, 0x7f80);
    if (bad < bytes.size() / size) {
      value = bf16_to_float(reinterpret_cast<const uint16_t*>(bytes.data())[bad]);
    }
  } else {
    return {};
  }
  if (bad == bytes.size() / size) return {};
  return corrupt(fmt::format("{}{}{} holds {} at {}, expected finite numbers", info.name,
                             info.shard.empty() ? "" : " in ", info.shard, value,
                             offset / size + bad));
}

Status check_finite(const TensorInfo& info, const TensorView& view) {
  return check_finite_part(info, view.bytes, 0);
}

}  // namespace nibble
