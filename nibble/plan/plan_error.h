// PlanResult<T>: like Result<T>, with the code, the hint and the exit status that `nibble plan`
// promises to programs that read its JSON. Source of codes and statuses: planner.md section 14.
#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

#include "nibble/base/result.h"

namespace nibble {

// code            exit  when
// usage            2    a required argument is missing
// bad_value        2    a number or a word that no option takes
// conflict         2    two options that contradict each other
// unknown_device   3    no such catalogue entry
// unknown_format   3    no such quantization
// model_not_found  3    no such model or path
// bad_model        3    a model that cannot be read
// bad_file         3    a catalogue, price or calibration file that cannot be read
// unavailable      3    a port that is taken, or something this build lacks
// context_too_long 4    beyond the model's max_position_embeddings
// bad_parallel     4    a split that the model's sizes don't allow
// impossible       4    another combination that cannot be
struct [[nodiscard]] PlanError {
  std::string code;
  std::string message;  // one sentence: what was given, what was expected
  std::string hint;     // the nearest choice that works; may be empty
  int exit_status = 2;
};

template <typename T>
using PlanResult = tl::expected<T, PlanError>;
using PlanStatus = PlanResult<void>;

// The error of one of the codes above, with its exit status.
tl::unexpected<PlanError> plan_error(std::string_view code, std::string message,
                                     std::string hint = {});

// The error of another folder under one of the codes above.
tl::unexpected<PlanError> plan_error(std::string_view code, const Error& error);

// For NIBBLE_TRY.
template <typename T>
T take_value(PlanResult<T>&& result) {
  return *std::move(result);
}
inline void take_value(PlanStatus&&) {}

}  // namespace nibble
