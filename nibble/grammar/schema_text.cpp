#include "nibble/grammar/schema_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::array kAnnotations = {"title",    "description", "default",      "examples",
                                     "$schema",  "$id",         "$comment",     "deprecated",
                                     "readOnly", "writeOnly",   "$defs",        "definitions",
                                     "$anchor",  "x-order",     "discriminator"};

// Brackets outside strings, before a parser that would recurse sees them.
bool is_too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxSchemaDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

std::vector<std::string> type_names(const Schema& type) {
  std::vector<std::string> names;
  if (type.is_string()) names.push_back(type.get<std::string>());
  if (type.is_array()) {
    for (const Schema& name : type) {
      if (name.is_string()) names.push_back(name.get<std::string>());
    }
  }
  return names;
}

// The types in both lists; "integer" is part of "number".
Schema common_types(const Schema& a, const Schema& b) {
  const auto names_a = type_names(a);
  const auto names_b = type_names(b);
  const auto has = [](const std::vector<std::string>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  Schema common = Schema::array();
  for (const std::string& name : names_a) {
    if (has(names_b, name) || (name == "integer" && has(names_b, "number"))) {
      common.push_back(name);
    } else if (name == "number" && has(names_b, "integer")) {
      common.push_back("integer");
    }
  }
  return common;
}

bool is_closed(const Schema& schema) {
  const auto found = schema.find("additionalProperties");
  return found != schema.end() && *found == false;
}

// Whether each property of `other` is one of `schema`.
bool has_all_properties(const Schema& schema, const Schema& other) {
  const auto found = other.find("properties");
  if (found == other.end() || !found->is_object()) return true;
  const auto own = schema.find("properties");
  return std::all_of(found->items().begin(), found->items().end(), [&](const auto& item) {
    return own != schema.end() && own->is_object() && own->contains(item.key());
  });
}

Result<Schema> merge_properties(const Schema& a, const Schema& b, std::string_view pointer) {
  if (!a.is_object() || !b.is_object()) {
    return malformed_schema(pointer, "properties is not an object");
  }
  Schema merged = a;
  for (const auto& [name, schema] : b.items()) {
    const auto found = merged.find(name);
    if (found == merged.end()) {
      merged[name] = schema;
    } else if (*found != schema) {
      // Both hold; the emitter merges them when it gets there.
      Schema both = Schema::object();
      both["allOf"] = Schema::array({*found, schema});
      merged[name] = std::move(both);
    }
  }
  return merged;
}

}  // namespace

Result<Schema> parse_schema(std::string_view text) {
  if (text.size() > kMaxSchemaBytes) {
    return invalid_argument(fmt::format("the JSON schema has {} bytes, expected at most {}",
                                        text.size(), kMaxSchemaBytes));
  }
  if (is_too_deep(text)) {
    return invalid_argument(
        fmt::format("the JSON schema is nested deeper than {} brackets", kMaxSchemaDepth));
  }
  try {
    return Schema::parse(text);
  } catch (const Schema::exception& e) {
    return invalid_argument(fmt::format("the JSON schema is not JSON: {}", e.what()));
  }
}

tl::unexpected<Error> unsupported_schema(std::string_view pointer, std::string_view what) {
  return invalid_argument(
      fmt::format("unsupported_schema: {}: {}", pointer.empty() ? "/" : pointer, what));
}

tl::unexpected<Error> malformed_schema(std::string_view pointer, std::string_view what) {
  return invalid_argument(
      fmt::format("invalid JSON schema: {}: {}", pointer.empty() ? "/" : pointer, what));
}

std::string child_pointer(std::string_view pointer, std::string_view key) {
  std::string result = std::string(pointer) + "/";
  for (const char c : key) {
    if (c == '~') {
      result += "~0";
    } else if (c == '/') {
      result += "~1";
    } else {
      result += c;
    }
  }
  return result;
}

bool is_annotation(std::string_view keyword) {
  return std::find(kAnnotations.begin(), kAnnotations.end(), keyword) != kAnnotations.end();
}

Result<const Schema*> resolve_reference(const Schema& root, const std::string& reference,
                                        std::string_view pointer) {
  if (reference == "#") return &root;
  if (reference.substr(0, 2) != "#/") {
    return unsupported_schema(pointer,
                              fmt::format("$ref '{}' leads out of the document", reference));
  }
  const Schema* here = &root;
  for (size_t at = 2; at <= reference.size();) {
    const size_t end = std::min(reference.find('/', at), reference.size());
    std::string key;
    for (size_t i = at; i < end; ++i) {
      if (reference[i] == '~' && i + 1 < end) {
        key += reference[++i] == '1' ? '/' : '~';
      } else {
        key += reference[i];
      }
    }
    at = end + 1;
    if (here->is_object() && here->contains(key)) {
      here = &(*here)[key];
    } else if (here->is_array() && !key.empty() && key.size() < 7 &&
               std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
               static_cast<size_t>(std::stoi(key)) < here->size()) {
      here = &(*here)[static_cast<size_t>(std::stoi(key))];
    } else {
      return malformed_schema(pointer, fmt::format("$ref '{}' points to nothing", reference));
    }
  }
  return here;
}

Result<Schema> merge_schemas(const Schema& a, const Schema& b, std::string_view pointer) {
  if (a.is_boolean()) return a.get<bool>() ? b : a;
  if (b.is_boolean()) return b.get<bool>() ? a : b;
  if (!a.is_object() || !b.is_object()) {
    return malformed_schema(pointer, "a schema is an object, true or false");
  }
  // additionalProperties speaks of the properties beside it, not of those of the other schema.
  const bool is_changed_by_other =
      (a.contains("additionalProperties") && !has_all_properties(a, b)) ||
      (b.contains("additionalProperties") && !has_all_properties(b, a));
  if (is_changed_by_other) {
    return unsupported_schema(pointer,
                              "additionalProperties beside properties from another part of allOf");
  }
  Schema merged = a;
  for (const auto& [keyword, value] : b.items()) {
    const auto found = merged.find(keyword);
    if (found == merged.end()) {
      merged[keyword] = value;
    } else if (*found == value || is_annotation(keyword)) {
      continue;
    } else if (keyword == "type") {
      *found = common_types(*found, value);
    } else if (keyword == "properties") {
      Schema properties = NIBBLE_TRY(merge_properties(*found, value, pointer));
      *found = std::move(properties);
    } else if (keyword == "required" && found->is_array() && value.is_array()) {
      for (const Schema& name : value) {
        if (std::find(found->begin(), found->end(), name) == found->end()) found->push_back(name);
      }
    } else if (keyword == "additionalProperties" && (is_closed(a) || is_closed(b))) {
      *found = false;
    } else {
      return unsupported_schema(pointer, fmt::format("'{}' with two different values", keyword));
    }
  }
  return merged;
}

}  // namespace nibble
