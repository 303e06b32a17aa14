// Errors as OpenAI's API words them; spec serving section 3.6.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/server/http.h"

namespace nibble {

struct ApiError {
  int status = 400;
  std::string message;  // one sentence
  std::string type = "invalid_request_error";
  std::string code;   // "" : null
  std::string param;  // the field, or "": null
  HttpHeaders headers = {};
  std::string extra = {};  // further JSON members of `error`: "\"n_prompt_tokens\":12"
};

template <typename T>
using ApiResult = tl::expected<T, ApiError>;

ApiError bad_request(std::string message, std::string code = "", std::string param = "");
ApiError out_of_range(std::string param, std::string message);
ApiError not_supported(std::string message, std::string param = "");

ApiError not_found_error(std::string message, std::string code = "");
// 503; `retry_after` in seconds.
ApiError unavailable_error(std::string message, std::string code, std::string_view retry_after);

// What an Error of the engine or a parser means to a client; `param` when its message begins with a
// field's name.
ApiError from_error(const Error& error);

// {"error":{"message":...,"type":...,"param":...,"code":...}}
std::string error_json(const ApiError& error);

// {"type":"error","error":{"type":...,"message":...}}, with Anthropic's types for each status.
std::string anthropic_error_json(const ApiError& error);

// The reply that tells it, with a line end behind the JSON.
HttpResponse error_response(const ApiError& error, bool anthropic = false);

}  // namespace nibble

// As NIBBLE_TRY, for ApiResult.
#define NIBBLE_API_TRY(expression)                                           \
  __extension__({                                                            \
    auto nibble_try_ = (expression);                                         \
    if (!nibble_try_) return tl::unexpected(std::move(nibble_try_).error()); \
    std::move(nibble_try_).value();                                          \
  })
