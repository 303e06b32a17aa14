// The tables of spec serving sections 4.3 and 4.4, numbered as there.
#pragma once

#include <string>
#include <vector>

#include "nibble/server/reply_parser.h"

namespace nibble::testing {

using Start = ReplyParserOptions::Start;

struct ReplyCase {
  const char* name;
  Start start;
  std::vector<std::string> tokens;  // "EOS" ends; without it the reply is cut off
  std::string expected;             // of joined events: R"..." C"..." and so on
  std::vector<std::string> anomalies = {};
  std::vector<std::string> stop = {};
  bool stop_in_reasoning = false;
  bool parallel = true;
};

inline std::vector<ReplyCase> reasoning_cases() {
  const std::string emoji_half("\xf0\x9f", 2);
  return {
      {"1", Start::kReasoning, {"a", "\n", "/T", "\n\n", "b", "EOS"}, R"(R"a" C"b")"},
      {"2", Start::kUndecided, {"T", "\n", "a", "\n", "/T", "\n\n", "b", "EOS"}, R"(R"a" C"b")"},
      {"3", Start::kUndecided, {"b", "EOS"}, R"(C"b")"},
      {"4", Start::kUndecided, {"\n", "T", "a", "/T", "b", "EOS"}, R"(R"a" C"b")"},
      {"5", Start::kReasoning, {"\n\n", "/T", "\n\n", "b", "EOS"}, R"(C"b")"},
      {"6", Start::kReasoning, {"a", ".\n\n", "/T", "b", "EOS"}, R"(R"a." C"b")"},
      {"7", Start::kReasoning, {"a"}, R"(R"a")"},
      {"8", Start::kReasoning, {"a", "EOS"}, R"(R"a")", {"unclosed"}},
      {"9", Start::kReasoning, {"</", "think", ">", "a", "/T", "b", "EOS"}, R"(R"</think>a" C"b")"},
      {"10",
       Start::kUndecided,
       {"a", "/T", "b", "EOS"},
       R"(C"a" moved C"b")",
       {"end_without_start"}},
      {"11",
       Start::kReasoning,
       {"a", "CB", "cb", "function", "SEP", "f\n", "{}", "ce", "CE"},
       R"(R"a" start(0,f) args"{}" end(0))",
       {"calls_in_reasoning"}},
      {"12", Start::kContent, {"x", "T", "y", "EOS"}, R"(C"x<think>y")"},
      {"13", Start::kReasoning, {emoji_half, "/T", "b", "EOS"}, "R\"\uFFFD\" C\"b\""},
      {"14", Start::kContent, {"a E", "N", "X", "EOS"}, R"(C"a ENX")", {}, {"END"}},
      {"15", Start::kReasoning, {"abc", "/T", "abc", "EOS"}, R"(R"abc" C"a")", {}, {"b"}},
      {"stop in reasoning", Start::kReasoning, {"abc", "/T", "abc"}, R"(R"a")", {}, {"b"}, true},
      {"nested",
       Start::kReasoning,
       {"a", "T", "b", "/T", "c", "EOS"},
       R"(R"ab" C"c")",
       {"nested_start"}},
      {"only white space", Start::kUndecided, {"\n", " ", "EOS"}, "C\"\n \""},
      {"empty reasoning", Start::kUndecided, {"/T", "\n\nHi", "EOS"}, R"(C"Hi")"},
      {"second end",
       Start::kReasoning,
       {"a", "/T", "b", "/T", "c", "EOS"},
       R"(R"a" C"bc")",
       {"end_without_start"}},
  };
}

inline std::vector<ReplyCase> tool_cases() {
  const std::string fence = "```";
  return {
      {"1",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f", "\n", fence, "json\n", "{\"a\":1", "}\n", fence, "ce",
        "CE"},
       R"(start(0,f) args"{"a":1}" end(0))"},
      {"2",
       Start::kContent,
       {"CB", "cb",       "function", "SEP", "f\n", fence,    "json\n", "{}\n", fence, "ce", "\n",
        "cb", "function", "SEP",      "g\n", fence, "json\n", "[1]\n",  fence,  "ce",  "CE"},
       R"(start(0,f) args"{}" end(0) start(1,g) args"[1]" end(1))"},
      {"3",
       Start::kContent,
       {"CB", "cb", "f", "SEP", "{}", "ce", "CE"},
       R"(start(0,f) args"{}" end(0))"},
      {"4", Start::kContent, {"CB", "CE"}, ""},
      {"5",
       Start::kContent,
       {"Sure.", "CB", "cb", "f", "SEP", "{}", "ce", "CE"},
       R"(C"Sure." start(0,f) args"{}" end(0))"},
      {"6",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n{\"a\":1}", "ce", "CE"},
       R"(start(0,f) args"{"a":1}" end(0))"},
      {"7",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n", fence, "json\n", "{\"a\": \"x\n```py\ny\n```\"}\n",
        fence, "ce", "CE"},
       "start(0,f) args\"{\"a\": \"x\n```py\ny\n```\"}\" end(0)"},
      {"8",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n", fence, "json\n", "{\"a\""},
       R"(start(0,f) args"{"a"")"},
      {"9",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n", fence, "json\n", "{\"a\"", "EOS"},
       R"(start(0,f) args"{"a"" end(0))",
       {"unclosed_call"}},
      {"10",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n", fence, "json\n", fence, "ce", "CE"},
       R"(start(0,f) args"{}" end(0))"},
      {"10, an empty line",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "f\n", fence, "json\n", "\n", fence, "\n", "ce", "CE"},
       R"(start(0,f) args"{}" end(0))"},
      {"11",
       Start::kContent,
       {"CB", "cb", "h", "SEP", "{}", "ce", "CE"},
       R"(start(0,h) args"{}" end(0))",
       {"unknown_tool"}},
      {"12",
       Start::kContent,
       {"CB", "cb", "f", "SEP", "{}", "ce", "EOS"},
       R"(start(0,f) args"{}" end(0))"},
      {"14",
       Start::kContent,
       {"CB", "cb", "f", "SEP", "{}", "ce", "\n", "cb", "g", "SEP", "{}", "ce", "CE"},
       R"(start(0,f) args"{}" end(0))",
       {},
       {},
       false,
       false},
      {"no name",
       Start::kContent,
       {"CB", "cb", "function", "SEP", "ce", "CE"},
       "",
       {"call_without_name"}},
      {"13",
       Start::kContent,
       {"CB", "cb", "f", "SEP", "{}", "ce", "x", "CE"},
       R"(start(0,f) args"{}" end(0))",
       {"text_between_calls"}},
  };
}

}  // namespace nibble::testing
