// The byte-level alphabet of GPT-2: each of the 256 bytes has a printable character of its own, so
// that a vocabulary of bytes can be written as text. Source: openai/gpt-2, src/encoder.py,
// bytes_to_unicode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// The character that stands for `byte`, as UTF-8: "A" for 0x41, "Ġ" for 0x20.
std::string byte_to_alphabet(uint8_t byte);

// The bytes that `text`, valid UTF-8, spells in the alphabet; nothing when one of its characters is
// not of the alphabet, as in "<｜User｜>".
std::optional<std::string> alphabet_to_bytes(std::string_view text);

}  // namespace nibble
