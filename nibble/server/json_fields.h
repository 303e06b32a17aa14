// Reading requests: JSON that is strict about itself, and fields that say what is wrong with them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/server/api_error.h"

namespace nibble {

// The JSON object of a request body. Errors: 400 invalid_json with the byte for malformed JSON,
// NaN, equal keys, invalid UTF-8, lone surrogates and more than 128 levels; and for what is no
// object.
ApiResult<nlohmann::ordered_json> parse_request_json(std::string_view body);

// Reads an object's members by name and remembers which were asked for. null is as good as absent.
// Errors of all: 400 naming the field and what it should be.
class JsonFields {
 public:
  // `object` outlives this.
  explicit JsonFields(const nlohmann::ordered_json& object) : object_(object) {}

  // null when absent.
  const nlohmann::ordered_json* find(const std::string& name);

  ApiResult<std::optional<std::string>> text(const std::string& name);
  ApiResult<std::optional<bool>> boolean(const std::string& name);
  ApiResult<std::optional<int64_t>> integer(const std::string& name);
  ApiResult<std::optional<double>> number(const std::string& name);
  // One text, or an array of texts.
  ApiResult<std::vector<std::string>> texts(const std::string& name);
  ApiResult<std::vector<int64_t>> integers(const std::string& name);

  // Accepted without being looked at.
  void accept(std::initializer_list<const char*> names);

  // Members that nobody asked for.
  std::vector<std::string> unknown() const;

 private:
  const nlohmann::ordered_json& object_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace nibble
