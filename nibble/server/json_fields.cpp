#include "nibble/server/json_fields.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/base/text.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 128;
// Far above any request; looking a key up in an ordered object takes time in proportion to them.
constexpr size_t kMaxKeys = 4096;

// Builds nothing; finds what nlohmann's parser lets pass: depth and equal keys.
class Checker : public nlohmann::json_sax<Json> {
 public:
  std::string problem;
  size_t position = 0;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t value, const string_t& text) override {
    if (std::isfinite(value)) return true;
    problem = fmt::format("the number {} is too large", text.substr(0, 40));
    return false;
  }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return enter();
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) override { return enter(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (keys_.back().size() >= kMaxKeys) {
      problem = fmt::format("an object with more than {} keys", kMaxKeys);
      return false;
    }
    if (keys_.back().insert(name).second) return true;
    problem = fmt::format("the key \"{}\" stands twice in one object", name.substr(0, 100));
    return false;
  }
  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception& e) override {
    position = at;
    problem = e.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." -> the end of it
    const size_t colon = problem.find(": ");
    if (colon != std::string::npos) problem.erase(0, colon + 2);
    return false;
  }

 private:
  bool enter() {
    if (++depth_ <= kMaxDepth) return true;
    problem = fmt::format("more than {} levels of nesting", kMaxDepth);
    return false;
  }
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
};

ApiError wrong_type(const std::string& name, std::string_view expected, const Json& found) {
  return bad_request(fmt::format("{} is {}, expected {}", name,
                                 found.is_string() ? "a text" : found.type_name(), expected),
                     "invalid_type", name);
}

}  // namespace

ApiResult<Json> parse_request_json(std::string_view body) {
  size_t bad = 0;
  if (!is_valid_utf8(body, &bad)) {
    return tl::unexpected(
        bad_request(fmt::format("the body is not valid UTF-8 at byte {}", bad), "invalid_json"));
  }
  Checker checker;
  if (!Json::sax_parse(body, &checker)) {
    const std::string where =
        checker.position > 0 ? fmt::format(" at byte {}", checker.position - 1) : "";
    return tl::unexpected(bad_request(
        fmt::format("the body is not valid JSON{}: {}", where, checker.problem), "invalid_json"));
  }
  Json json = Json::parse(body, nullptr, false);
  if (!json.is_object()) {
    return tl::unexpected(bad_request(
        fmt::format("the body is {}, expected a JSON object", json.type_name()), "invalid_json"));
  }
  return json;
}

const Json* JsonFields::find(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

ApiResult<std::optional<std::string>> JsonFields::text(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return tl::unexpected(wrong_type(name, "a text", *value));
  return value->get<std::string>();
}

ApiResult<std::optional<bool>> JsonFields::boolean(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) return tl::unexpected(wrong_type(name, "true or false", *value));
  return value->get<bool>();
}

ApiResult<std::optional<int64_t>> JsonFields::integer(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  constexpr double kExact = 9007199254740992.0;  // 2^53: 5.0 counts as 5
  if (value->is_number_float()) {
    const double number = value->get<double>();
    if (number == std::floor(number) && std::fabs(number) <= kExact) {
      return static_cast<int64_t>(number);
    }
    return tl::unexpected(wrong_type(name, "a whole number", *value));
  }
  if (!value->is_number_integer())
    return tl::unexpected(wrong_type(name, "a whole number", *value));
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return tl::unexpected(out_of_range(name, name + " is beyond 64 bits"));
  }
  return value->get<int64_t>();
}

ApiResult<std::optional<double>> JsonFields::number(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return tl::unexpected(wrong_type(name, "a number", *value));
  return value->get<double>();
}

ApiResult<std::vector<std::string>> JsonFields::texts(const std::string& name) {
  const Json* value = find(name);
  std::vector<std::string> out;
  if (value == nullptr) return out;
  if (value->is_string()) return std::vector<std::string>{value->get<std::string>()};
  if (!value->is_array()) {
    return tl::unexpected(wrong_type(name, "a text or an array of texts", *value));
  }
  for (const Json& entry : *value) {
    if (!entry.is_string()) return tl::unexpected(wrong_type(name, "texts only", entry));
    out.push_back(entry.get<std::string>());
  }
  return out;
}

ApiResult<std::vector<int64_t>> JsonFields::integers(const std::string& name) {
  const Json* value = find(name);
  std::vector<int64_t> out;
  if (value == nullptr) return out;
  if (!value->is_array()) return tl::unexpected(wrong_type(name, "an array of numbers", *value));
  for (const Json& entry : *value) {
    if (!entry.is_number_integer()) {
      return tl::unexpected(wrong_type(name, "whole numbers only", entry));
    }
    out.push_back(entry.get<int64_t>());
  }
  return out;
}

void JsonFields::accept(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.insert(name);
}

std::vector<std::string> JsonFields::unknown() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) names.push_back(name);
  }
  return names;
}

}  // namespace nibble
