// Result<T>: the value of an operation that may fail, or the Error that says why it did.
#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace nibble {

enum class ErrorCode {
  kInvalidArgument,  // the caller asked for something malformed      HTTP 400, exit 2
  kNotFound,         // no such file, tensor or model                 HTTP 404, exit 1
  kCorrupt,          // bytes on disk disagree with their own header  HTTP 500, exit 1
  kUnsupported,      // well formed, but not by this build or device  HTTP 501, exit 1
  kOutOfMemory,      // host, device or KV blocks are exhausted       HTTP 503, exit 1
  kUnavailable,      // busy or shutting down; a retry may succeed    HTTP 503, exit 1
  kCancelled,        // the caller went away                          (no reply)
};

struct [[nodiscard]] Error {
  ErrorCode code;
  std::string message;  // one sentence: what, where, expected, found

  // "loading layer 3: shard 7: weight_scale has shape [8, 4], expected [8, 8]"
  Error with_context(std::string_view context) && {
    message.insert(0, std::string(context) + ": ");
    return std::move(*this);
  }
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// What NIBBLE_TRY leaves: the value of a Result, nothing of a Status. (tl::expected<void> has no
// operator*, unlike std::expected<void>.)
template <typename T>
T take_value(Result<T>&& result) {
  return *std::move(result);
}
inline void take_value(Status&&) {}

}  // namespace nibble

// auto config = NIBBLE_TRY(load_config(path));  // or returns the Error from this function
// One inside the other shadows a name, which the warnings refuse: use two lines.
#define NIBBLE_TRY(expression)                                               \
  __extension__({                                                            \
    auto nibble_try_ = (expression);                                         \
    if (!nibble_try_) return tl::unexpected(std::move(nibble_try_).error()); \
    ::nibble::take_value(std::move(nibble_try_));                            \
  })
