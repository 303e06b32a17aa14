// Typed access to a parsed JSON document that may hold anything anywhere.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Errors: kCorrupt with `where` and the byte at which the text stops being JSON.
Result<nlohmann::json> parse_json_document(std::string_view text, std::string_view where);

// A value as a message shows it: numbers, truth values and short texts themselves, of the rest the
// type. Never deep, whatever the value holds.
std::string describe_json(const nlohmann::json& value);

// object[key], or a null value when it is absent or `object` is none.
const nlohmann::json& field(const nlohmann::json& object, std::string_view key);

// object[key], or `otherwise` when it is absent or null. Errors: kCorrupt for another type.
Result<bool> bool_field(const nlohmann::json& object, std::string_view key, bool otherwise);

// object[key]. Errors: kCorrupt when it is absent or another type.
Result<std::string> string_field(const nlohmann::json& object, std::string_view key);

// A whole number from 0 up to but not including `limit`. Errors: kCorrupt.
Result<int32_t> id_value(const nlohmann::json& value, int32_t limit);

}  // namespace nibble
