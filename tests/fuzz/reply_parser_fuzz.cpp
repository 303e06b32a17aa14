// Token streams of any kind: the parser's events are the same whole text, and calls are balanced.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/text.h"
#include "nibble/server/reply_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::ReplyEvent;
  if (size == 0) return 0;
  static constexpr std::array<std::string_view, 24> kTexts = {
      "<think>", "</think>", "",     "",         "",         "",         "",     "function",
      "f",       "\n",       "\n\n", "```",      "json\n",   "{\"a\":1", "}\n",  "}",
      " ",       "END",      "E",    "\xf0\x9f", "\x98\x80", "x",        "\xff", "\n```"};
  nibble::ReplyParserOptions options;
  options.tags = {0, 1, 2, 3, 4, 5, 6};
  options.token_text = [](int32_t id) { return kTexts[static_cast<size_t>(id)]; };
  options.start = static_cast<nibble::ReplyParserOptions::Start>(data[0] % 3);
  options.parse_tools = (data[0] & 4) != 0;
  options.parallel_tool_calls = (data[0] & 8) == 0;
  if ((data[0] & 16) != 0) options.stop = {"END"};

  nibble::ReplyParser parser(options);
  std::vector<ReplyEvent> events;
  for (size_t i = 1; i < size; ++i) {
    parser.push(static_cast<int32_t>(data[i] % kTexts.size()), events);
  }
  parser.finish((data[0] & 64) != 0, events);
  int open = 0;
  for (const ReplyEvent& event : events) {
    NIBBLE_CHECK(nibble::is_valid_utf8(event.text));
    if (event.kind == ReplyEvent::Kind::kToolStart) NIBBLE_CHECK(event.call == open++);
    if (event.kind == ReplyEvent::Kind::kToolArguments) NIBBLE_CHECK(event.call == open - 1);
  }
  NIBBLE_CHECK(open == parser.num_calls());
  return 0;
}
