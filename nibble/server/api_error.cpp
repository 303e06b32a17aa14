#include "nibble/server/api_error.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
    case 504:
      return "overloaded_error";
    default:
      return status >= 500 && status != 501 ? "api_error" : "invalid_request_error";
  }
}

// "temperature is 3, expected 0..2" is about temperature, "the number of texts in stop is 17" about
// stop.
std::string field_of(std::string message) {
  const size_t is = message.find(" is ");
  if ((message.starts_with("the number of ") || message.starts_with("the size of ")) &&
      is != std::string::npos) {
    message.erase(0, message.rfind(' ', is - 1) + 1);
  }
  const size_t end = message.find_first_of(" [.:");
  if (end == std::string::npos || !message.substr(end).starts_with(" is ")) return "";
  const std::string word = message.substr(0, end);
  const bool is_name = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || c == '_';
  });
  return is_name ? word : "";
}

}  // namespace

ApiError bad_request(std::string message, std::string code, std::string param) {
  ApiError error;
  error.message = std::move(message);
  error.code = std::move(code);
  error.param = std::move(param);
  return error;
}

ApiError out_of_range(std::string param, std::string message) {
  return bad_request(std::move(message), "out_of_range", std::move(param));
}

ApiError not_supported(std::string message, std::string param) {
  ApiError error = bad_request(std::move(message), "not_supported", std::move(param));
  error.status = 501;
  error.type = "not_supported";
  return error;
}

ApiError not_found_error(std::string message, std::string code) {
  ApiError error = bad_request(std::move(message), std::move(code));
  error.status = 404;
  error.type = "not_found_error";
  return error;
}

ApiError unavailable_error(std::string message, std::string code, std::string_view retry_after) {
  ApiError error = bad_request(std::move(message), std::move(code));
  error.status = 503;
  error.type = "service_unavailable";
  error.headers.emplace_back("Retry-After", std::string(retry_after));
  return error;
}

ApiError from_error(const Error& error) {
  ApiError api = bad_request(error.message, "", field_of(error.message));
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
      if (error.message.find("unsupported_schema") != std::string::npos) {
        api.code = "unsupported_schema";
      } else if (!api.param.empty()) {
        api.code = "out_of_range";
      }
      return api;
    case ErrorCode::kNotFound:
      api.status = 404;
      api.type = "not_found_error";
      return api;
    case ErrorCode::kUnsupported:
      return not_supported(error.message, api.param);
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kUnavailable:
      api.status = 503;
      api.type = "service_unavailable";
      api.code = error.code == ErrorCode::kOutOfMemory ? "out_of_memory" : "shutting_down";
      api.headers.emplace_back("Retry-After", "1");
      return api;
    case ErrorCode::kCorrupt:
    case ErrorCode::kCancelled:
      break;
  }
  api.status = 500;
  api.type = "server_error";
  return api;
}

std::string error_json(const ApiError& error) {
  Json inner = {{"message", error.message},
                {"type", error.type},
                {"param", text_or_null(error.param)},
                {"code", text_or_null(error.code)}};
  if (!error.extra.empty()) inner.update(Json::parse("{" + error.extra + "}"));
  return Json{{"error", inner}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string anthropic_error_json(const ApiError& error) {
  const Json inner = {{"type", anthropic_type(error.status)}, {"message", error.message}};
  return Json{{"type", "error"}, {"error", inner}}.dump(-1, ' ', false,
                                                        Json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& error, bool anthropic) {
  HttpResponse response;
  response.status = error.status;
  response.headers = error.headers;
  response.body = (anthropic ? anthropic_error_json(error) : error_json(error)) + "\n";
  return response;
}

}  // namespace nibble
