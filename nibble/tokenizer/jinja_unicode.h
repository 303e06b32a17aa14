// UTF-8 as Python's str sees it: code points, whitespace, case. Every function takes well-formed
// UTF-8 (jinja::Template checks what comes from outside).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble::jinja {

// The code point at text[*position], which must be inside the text; moves past it.
char32_t next_code_point(std::string_view text, size_t* position);

// Bytes of the code point that begins with `lead`: 1 to 4.
size_t code_point_bytes(char lead);

void append_utf8(std::string& out, char32_t code_point);

size_t count_code_points(std::string_view text);

// Whether Python's str.isspace() holds for the character.
bool is_space(char32_t code_point);

// str.lstrip and str.rstrip; without `chars` (null) they remove whitespace.
std::string_view strip_left(std::string_view text, const std::string* chars = nullptr);
std::string_view strip_right(std::string_view text, const std::string* chars = nullptr);

// str.upper() and str.lower() by the C.UTF-8 locale's one-to-one mappings.
// Errors: kUnsupported for a character whose mapping needs more than that (such as U+00DF).
Result<std::string> change_case(std::string_view text, bool upper);

// text.find(wanted, from) in linear time, whatever the texts: std::string's takes their product.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);

// Whether repr() shows the character as it is. An approximation above U+007F: unassigned characters
// count as printable.
bool is_printable(char32_t code_point);

}  // namespace nibble::jinja
