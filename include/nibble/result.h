// What a call that may fail returns: its value, or an Error that says what was wrong.
//
//   auto llm = nibble::LLM::load({.model = "DIR"});
//   if (!llm) return report(llm.error().message);
//   use(*llm);
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace nibble::api {

enum class ErrorCode {
  kInvalidArgument = 1,  // the caller asked for something malformed
  kNotFound = 2,         // no such file or model
  kCorrupt = 3,          // a file that contradicts itself
  kUnsupported = 4,      // well formed, but not by this build or device
  kOutOfMemory = 5,      // of the host, or of the KV cache
  kUnavailable = 6,      // shutting down
  kCancelled = 7,        // interrupted
};

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;  // one sentence: what, where, expected, found
};

// What the value of a Result without one throws.
class ResultError : public std::runtime_error {
 public:
  explicit ResultError(const Error& error) : std::runtime_error(error.message), code(error.code) {}
  ErrorCode code;
};

// Holds a T or an Error. Taking the value of an error throws ResultError with its message, so a
// program that doesn't check ends with the reason instead of going on with nothing.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& value() & { return check(), std::get<0>(state_); }
  const T& value() const& { return check(), std::get<0>(state_); }
  T&& value() && { return check(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Only of a Result without a value.
  const Error& error() const { return std::get<1>(state_); }

 private:
  void check() const {
    if (!has_value()) throw ResultError(std::get<1>(state_));
  }

  std::variant<T, Error> state_;
};

// Whether something was done.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT: implicit

  bool has_value() const { return ok_; }
  explicit operator bool() const { return ok_; }
  void value() const {
    if (!ok_) throw ResultError(error_);
  }
  const Error& error() const { return error_; }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace nibble::api

#ifndef NIBBLE_IMPLEMENTATION  // whose own types have these names
namespace nibble {
using api::Error;
using api::ErrorCode;
using api::Result;
using api::ResultError;
}  // namespace nibble
#endif
