#include "nibble/checkpoint/finite_values.h"

#include <fmt/format.h>

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"

namespace nibble {

Status check_finite(const TensorInfo& info, const TensorView& view) {
  if (info.dtype != DType::kF32 && info.dtype != DType::kBf16) return {};
  const auto count = static_cast<size_t>(view.shape.num_elements());
  for (size_t i = 0; i < count; ++i) {
    const float value =
        info.dtype == DType::kF32 ? view.data<float>()[i] : bf16_to_float(view.data<uint16_t>()[i]);
    if (!std::isfinite(value)) {
      return corrupt(fmt::format("{}{}{} holds {} at {}, expected finite numbers", info.name,
                                 info.shard.empty() ? "" : " in ", info.shard, value, i));
    }
  }
  return {};
}

}  // namespace nibble
