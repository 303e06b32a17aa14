// Any bytes as tokenizer.json: refused with an error, or a tokenizer that encodes and decodes texts
// and is its own inverse where nothing but text is involved.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/detokenizer.h"
#include "nibble/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::parse(json, "fuzz");
  if (!tokenizer) return 0;

  // The last text is the file itself, cut so that a run stays short.
  for (const std::string_view text :
       {std::string_view(), std::string_view("hello  hell\r\n 12345 don't<t>"),
        std::string_view("\u4e2d\u6587\u3000e\u0301\U0001f600\u3042 <|a|>"),
        std::string_view("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        json.substr(0, 512)}) {
    const auto ids = tokenizer->encode(text);
    const auto plain = tokenizer->encode(text, {.parse_added_tokens = false});
    if (!is_valid_utf8(text)) {
      NIBBLE_CHECK(!ids && !plain);
      continue;
    }
    // A regular expression may give up; then it does without an answer, not with a wrong one.
    if (plain) NIBBLE_CHECK(tokenizer->decode(*plain, false) == text);
    if (!ids) continue;
    Detokenizer detokenizer(*tokenizer, true);
    std::string streamed;
    for (const int32_t id : *ids) {
      NIBBLE_CHECK(id >= 0 && id < tokenizer->vocab_size());
      streamed += detokenizer.push(id);
    }
    streamed += detokenizer.flush();
    NIBBLE_CHECK(streamed == tokenizer->decode(*ids, true));
  }
  return 0;
}
