#include "nibble/tokenizer/jinja_limits.h"

#include <fmt/format.h>

#include "nibble/base/error.h"

namespace nibble::jinja {

Status Budget::spend_steps(size_t steps) {
  if (steps > steps_left_) {
    return invalid_argument(
        fmt::format("the template takes more than {} steps: it loops too much", limits_.max_steps));
  }
  steps_left_ -= steps;
  return {};
}

Status Budget::spend_bytes(size_t bytes) {
  if (bytes > bytes_left_) {
    return invalid_argument(
        fmt::format("the template makes more than {} bytes of values", limits_.max_bytes));
  }
  bytes_left_ -= bytes;
  return {};
}

Status Budget::look_at(size_t bytes) { return spend_steps(bytes / 64); }

Status Budget::check_output(size_t bytes) const {
  if (bytes > limits_.max_output_bytes) {
    return invalid_argument(
        fmt::format("the template writes more than {} bytes", limits_.max_output_bytes));
  }
  return {};
}

}  // namespace nibble::jinja
