#include "nibble/base/error.h"

#include <cerrno>
#include <system_error>

namespace nibble {
namespace {

tl::unexpected<Error> make(ErrorCode code, std::string message) {
  return tl::unexpected(Error{code, std::move(message)});
}

}  // namespace

tl::unexpected<Error> invalid_argument(std::string message) {
  return make(ErrorCode::kInvalidArgument, std::move(message));
}
tl::unexpected<Error> not_found(std::string message) {
  return make(ErrorCode::kNotFound, std::move(message));
}
tl::unexpected<Error> corrupt(std::string message) {
  return make(ErrorCode::kCorrupt, std::move(message));
}
tl::unexpected<Error> unsupported(std::string message) {
  return make(ErrorCode::kUnsupported, std::move(message));
}
tl::unexpected<Error> out_of_memory(std::string message) {
  return make(ErrorCode::kOutOfMemory, std::move(message));
}
tl::unexpected<Error> unavailable(std::string message) {
  return make(ErrorCode::kUnavailable, std::move(message));
}
tl::unexpected<Error> cancelled(std::string message) {
  return make(ErrorCode::kCancelled, std::move(message));
}

tl::unexpected<Error> system_error(std::string what, int error_number) {
  ErrorCode code = ErrorCode::kUnavailable;
  if (error_number == ENOENT || error_number == ENOTDIR) code = ErrorCode::kNotFound;
  if (error_number == ENOMEM) code = ErrorCode::kOutOfMemory;
  return make(code, std::move(what) + ": " + std::generic_category().message(error_number));
}

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return 2;
    case ErrorCode::kCancelled:
      return 130;
    default:
      return 1;
  }
}

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace nibble
