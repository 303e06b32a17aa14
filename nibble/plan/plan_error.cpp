#include "nibble/plan/plan_error.h"

namespace nibble {
namespace {

int exit_status(std::string_view code) {
  if (code == "usage" || code == "bad_value" || code == "conflict") return 2;
  if (code == "context_too_long" || code == "bad_parallel" || code == "impossible") return 4;
  return 3;
}

}  // namespace

tl::unexpected<PlanError> plan_error(std::string_view code, std::string message, std::string hint) {
  return tl::unexpected(
      PlanError{std::string(code), std::move(message), std::move(hint), exit_status(code)});
}

tl::unexpected<PlanError> plan_error(std::string_view code, const Error& error) {
  return plan_error(code, error.message);
}

}  // namespace nibble
