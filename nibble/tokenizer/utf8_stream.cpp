#include "nibble/tokenizer/utf8_stream.h"

namespace nibble {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (missing_ > 0) {
      if (byte >= low_ && byte <= high_) {
        pending_[static_cast<size_t>(num_pending_++)] = c;
        low_ = 0x80;
        high_ = 0xbf;
        if (--missing_ == 0) {
          out.append(pending_.data(), static_cast<size_t>(num_pending_));
          num_pending_ = 0;
        }
        continue;
      }
      // The character breaks off here; this byte starts anew below.
      flush(out);
    }
    if (byte < 0x80) {
      out += c;
      continue;
    }
    if (byte < 0xc2 || byte > 0xf4) {
      out += kReplacement;
      continue;
    }
    missing_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    // Overlong forms, surrogates and what is above U+10FFFF are wrong from their second byte on.
    low_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
    high_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    pending_[0] = c;
    num_pending_ = 1;
  }
}

void Utf8Stream::flush(std::string& out) {
  if (missing_ > 0) out += kReplacement;
  missing_ = 0;
  num_pending_ = 0;
  low_ = 0x80;
  high_ = 0xbf;
}

}  // namespace nibble
