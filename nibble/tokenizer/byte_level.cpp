#include "nibble/tokenizer/byte_level.h"

#include <array>

namespace nibble {
namespace {

// Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, are U+0100 up.
constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
         (byte >= 0xae && byte <= 0xff);
}

constexpr int kAlphabetEnd = 0x100 + 68;  // above the largest code point of the alphabet

struct Alphabet {
  std::array<int, 256> code_points{};
  std::array<int, kAlphabetEnd> bytes{};  // -1 for a code point that is not of the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (int& byte : alphabet.bytes) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = stands_for_itself(byte) ? byte : next++;
    alphabet.code_points[static_cast<size_t>(byte)] = code_point;
    alphabet.bytes[static_cast<size_t>(code_point)] = byte;
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string byte_to_alphabet(uint8_t byte) {
  const int code_point = kAlphabet.code_points[byte];
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    int code_point = static_cast<unsigned char>(text[i]);
    if (code_point >= 0x80) {
      // The alphabet ends below U+0800: longer forms (lead byte E0 and up) are outside.
      if (code_point >= 0xe0 || i + 1 >= text.size()) return std::nullopt;
      code_point = (code_point & 0x1f) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3f);
    }
    if (code_point >= kAlphabetEnd) return std::nullopt;
    const int byte = kAlphabet.bytes[static_cast<size_t>(code_point)];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace nibble
