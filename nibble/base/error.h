// Ways to make and change the Error of a Result in one line.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// return invalid_argument("--temperature is -1, expected 0..2");
tl::unexpected<Error> invalid_argument(std::string message);
tl::unexpected<Error> not_found(std::string message);
tl::unexpected<Error> corrupt(std::string message);
tl::unexpected<Error> unsupported(std::string message);
tl::unexpected<Error> out_of_memory(std::string message);
tl::unexpected<Error> unavailable(std::string message);
tl::unexpected<Error> cancelled(std::string message);

// The code for a failed system call: ENOENT -> kNotFound, ENOMEM -> kOutOfMemory, otherwise
// kUnavailable; the message ends in what strerror says of `error_number`.
tl::unexpected<Error> system_error(std::string what, int error_number);

// What the program exits with for an error of this code: 2 for kInvalidArgument, 130 for
// kCancelled, otherwise 1.
int exit_code(ErrorCode code);

// "invalid argument", "corrupt": for logs and JSON.
std::string_view error_code_name(ErrorCode code);

// result, with `context` in front of its message if it is an error.
template <typename T>
Result<T> with_context(Result<T> result, std::string_view context) {
  if (result) return result;
  return tl::unexpected(std::move(result).error().with_context(context));
}

}  // namespace nibble
