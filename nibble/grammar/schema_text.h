// A JSON schema's document: parsing within limits, pointers, and putting schemas together.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

using Schema = nlohmann::ordered_json;  // keeps the order of properties

inline constexpr size_t kMaxSchemaBytes = 1 << 20;
inline constexpr int kMaxSchemaDepth = 64;  // of brackets, and of schemas inside schemas

// Errors: kInvalidArgument for malformed JSON, more than 1 MiB or brackets deeper than 64.
Result<Schema> parse_schema(std::string_view text);

// "unsupported_schema: POINTER: what", and the same for a malformed one.
tl::unexpected<Error> unsupported_schema(std::string_view pointer, std::string_view what);
tl::unexpected<Error> malformed_schema(std::string_view pointer, std::string_view what);

// pointer + "/" + key, escaped as RFC 6901 wants.
std::string child_pointer(std::string_view pointer, std::string_view key);

// Whether a keyword says nothing about the documents: title, description, default, ...
bool is_annotation(std::string_view keyword);

// The schema that `reference`, "#" or "#/...", points to. Errors: malformed_schema when nothing is
// there, unsupported_schema for a reference out of the document.
Result<const Schema*> resolve_reference(const Schema& root, const std::string& reference,
                                        std::string_view pointer);

// A schema for the documents of both a and b, objects without allOf and $ref. Errors:
// unsupported_schema where that isn't the sum of their keywords.
Result<Schema> merge_schemas(const Schema& a, const Schema& b, std::string_view pointer);

}  // namespace nibble
