// Bytes to text as they arrive: whole, valid UTF-8 comes out, with U+FFFD for what is not.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// Each maximal beginning of a character that goes wrong becomes one U+FFFD, as Unicode recommends
// (chapter 3.9, "U+FFFD Substitution of Maximal Subparts") and Rust's from_utf8_lossy, and with it
// Hugging Face, does. However the bytes are divided into pushes, the text is the same.
class Utf8Stream {
 public:
  // Appends to `out` what `bytes` complete; up to 3 bytes of an unfinished character stay back.
  void push(std::string_view bytes, std::string& out);

  // Ends the text: appends U+FFFD when an unfinished character was kept back.
  void flush(std::string& out);

 private:
  std::array<char, 4> pending_{};  // the unfinished character's bytes
  int num_pending_ = 0;
  int missing_ = 0;     // continuation bytes that it still needs
  uint8_t low_ = 0x80;  // the next one's range, narrower than 80..BF after E0, ED, F0 and F4
  uint8_t high_ = 0xbf;
};

}  // namespace nibble
