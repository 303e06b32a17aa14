#include "nibble/engine/sampling_params.h"

#include <fmt/format.h>

#include "nibble/base/error.h"

namespace nibble {
namespace {

tl::unexpected<Error> out_of_range(std::string_view field, double value, std::string_view range) {
  return invalid_argument(fmt::format("{} is {}, expected {}", field, value, range));
}

}  // namespace

// Written so that NaN fails each test.
Status validate(const SamplingParams& params) {
  if (params.max_tokens && *params.max_tokens < 1) {
    return invalid_argument(
        fmt::format("max_tokens is {}, expected 1 or more", *params.max_tokens));
  }
  if (!(params.temperature >= 0 && params.temperature <= 2)) {
    return out_of_range("temperature", params.temperature, "0..2");
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return out_of_range("top_p", params.top_p, "above 0, at most 1");
  }
  if (params.top_k < -1) {
    return invalid_argument(
        fmt::format("top_k is {}, expected -1 or 0 (off) or 1 and more", params.top_k));
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return out_of_range("min_p", params.min_p, "0..1");
  }
  return {};
}

}  // namespace nibble
