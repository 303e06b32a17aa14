// The tables of spec serving sections 4.3 and 4.4, each case cut into steps at every place.
#include "nibble/server/reply_parser.h"

#include <gtest/gtest.h>

#include <map>

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;
using Start = ReplyParserOptions::Start;

// A vocabulary made up as it is used; the tags have the ids below 10.
class Words {
 public:
  int32_t id(const std::string& text) {
    static const std::map<std::string, int32_t> tags = {{"T", 1},  {"/T", 2}, {"CB", 3}, {"CE", 4},
                                                        {"cb", 5}, {"ce", 6}, {"SEP", 7}};
    const auto tag = tags.find(text);
    if (tag != tags.end()) return tag->second;
    texts_.push_back(text);
    return static_cast<int32_t>(texts_.size()) + 9;
  }
  std::string_view text(int32_t token) const {
    constexpr std::string_view kTags[] = {"", "<think>", "</think>", "", "", "", "", ""};
    return token < 10 ? kTags[token] : std::string_view(texts_[static_cast<size_t>(token) - 10]);
  }

 private:
  std::vector<std::string> texts_;
};

struct Case {
  const char* name;
  Start start;
  std::vector<std::string> tokens;  // "EOS" ends; without it the reply is cut off
  std::string expected;             // of joined events: R"..." C"..." and so on
  std::vector<std::string> anomalies = {};
  std::vector<std::string> stop = {};
  bool stop_in_reasoning = false;
  bool parallel = true;
};

ReplyParserOptions options_for(const Case& c, const Words& words) {
  ReplyParserOptions options;
  options.tags = {1, 2, 3, 4, 5, 6, 7};
  options.token_text = [&words](int32_t id) { return words.text(id); };
  options.start = c.start;
  options.parse_tools = true;
  options.parallel_tool_calls = c.parallel;
  options.tool_names = {"f", "g"};
  options.stop = c.stop;
  options.stop_in_reasoning = c.stop_in_reasoning;
  return options;
}

std::string describe(const std::vector<ReplyEvent>& events) {
  std::string out;
  Kind last = Kind::kToolEnd;
  for (const ReplyEvent& event : events) {
    const bool joins =
        event.kind == last && !out.empty() && out.back() == '"' &&
        (last == Kind::kReasoning || last == Kind::kContent || last == Kind::kToolArguments);
    last = event.kind;
    if (joins) {
      out.pop_back();
      out += event.text + '"';
      continue;
    }
    out += out.empty() ? "" : " ";
    const std::string call = std::to_string(event.call);
    switch (event.kind) {
      case Kind::kReasoning:
        out += "R\"" + event.text + '"';
        break;
      case Kind::kContent:
        out += "C\"" + event.text + '"';
        break;
      case Kind::kContentWasReasoning:
        out += "moved";
        break;
      case Kind::kToolStart:
        out += "start(" + call + "," + event.text + ")";
        break;
      case Kind::kToolArguments:
        out += "args\"" + event.text + '"';
        break;
      case Kind::kToolEnd:
        out += "end(" + call + ")";
        break;
    }
  }
  return out;
}

// A reply's text is the same however its tokens' bytes were cut, so besides whole tokens each token
// of text is also given in two halves, at every place.
void check(const Case& c) {
  SCOPED_TRACE(c.name);
  size_t texts = 0;
  for (const std::string& token : c.tokens) texts = std::max(texts, token.size());
  for (size_t cut = 0; cut <= texts; ++cut) {
    SCOPED_TRACE(cut);
    Words words;
    ReplyParser parser(options_for(c, words));
    std::vector<int32_t> ids;
    bool eos = false;
    for (const std::string& token : c.tokens) {
      if (token == "EOS") {
        eos = true;
        break;
      }
      const bool is_tag = words.id(token) < 10;
      const bool is_whole = token == "function" || cut == 0 || cut >= token.size() || is_tag;
      if (is_whole) {
        ids.push_back(words.id(token));
      } else {
        ids.push_back(words.id(token.substr(0, cut)));
        ids.push_back(words.id(token.substr(cut)));
      }
    }
    std::vector<ReplyEvent> events;
    for (const int32_t id : ids) parser.push(id, events);
    parser.finish(!eos, events);
    EXPECT_EQ(describe(events), c.expected);
    EXPECT_EQ(parser.anomalies(), c.anomalies);
  }
}

TEST(ReplyParser, ReasoningCasesOfTheSpecification) {
  const std::string emoji_half("\xf0\x9f", 2);
  for (const Case& c : std::vector<Case>{
           {"1", Start::kReasoning, {"a", "\n", "/T", "\n\n", "b", "EOS"}, R"(R"a" C"b")"},
           {"2",
            Start::kUndecided,
            {"T", "\n", "a", "\n", "/T", "\n\n", "b", "EOS"},
            R"(R"a" C"b")"},
           {"3", Start::kUndecided, {"b", "EOS"}, R"(C"b")"},
           {"4", Start::kUndecided, {"\n", "T", "a", "/T", "b", "EOS"}, R"(R"a" C"b")"},
           {"5", Start::kReasoning, {"\n\n", "/T", "\n\n", "b", "EOS"}, R"(C"b")"},
           {"6", Start::kReasoning, {"a", ".\n\n", "/T", "b", "EOS"}, R"(R"a." C"b")"},
           {"7", Start::kReasoning, {"a"}, R"(R"a")"},
           {"8", Start::kReasoning, {"a", "EOS"}, R"(R"a")", {"unclosed"}},
           {"9",
            Start::kReasoning,
            {"</", "think", ">", "a", "/T", "b", "EOS"},
            R"(R"</think>a" C"b")"},
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
           {"stop in reasoning",
            Start::kReasoning,
            {"abc", "/T", "abc"},
            R"(R"a")",
            {},
            {"b"},
            true},
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
       }) {
    check(c);
  }
}

TEST(ReplyParser, ToolCasesOfTheSpecification) {
  const std::string fence = "```";
  for (const Case& c : std::vector<Case>{
           {"1",
            Start::kContent,
            {"CB", "cb", "function", "SEP", "f", "\n", fence, "json\n", "{\"a\":1", "}\n", fence,
             "ce", "CE"},
            R"(start(0,f) args"{"a":1}" end(0))"},
           {"2",
            Start::kContent,
            {"CB",   "cb",  "function", "SEP",   "f\n", fence,      "json\n",
             "{}\n", fence, "ce",       "\n",    "cb",  "function", "SEP",
             "g\n",  fence, "json\n",   "[1]\n", fence, "ce",       "CE"},
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
            {"CB", "cb", "function", "SEP", "f\n", fence, "json\n",
             "{\"a\": \"x\n```py\ny\n```\"}\n", fence, "ce", "CE"},
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
       }) {
    check(c);
  }
}

TEST(ReplyParser, TextBetweenCallsIsDropped) {
  Case c{"13",
         Start::kContent,
         {"CB", "cb", "f", "SEP", "{}", "ce", "x", "CE"},
         R"(start(0,f) args"{}" end(0))",
         {"text_between_calls"}};
  check(c);
}

TEST(ReplyParser, WithoutToolsMarkersNeverShow) {
  Words words;
  ReplyParserOptions options = options_for({"", Start::kContent, {}, ""}, words);
  options.parse_tools = false;
  ReplyParser parser(std::move(options));
  std::vector<ReplyEvent> events;
  for (const char* token : {"a", "CB", "b", "CE"}) parser.push(words.id(token), events);
  parser.finish(false, events);
  EXPECT_EQ(describe(events), R"(C"ab")");
  EXPECT_EQ(parser.num_calls(), 0);
}

TEST(ReplyParser, WithoutAReasoningParserTagsAreText) {
  Words words;
  ReplyParserOptions options = options_for({"", Start::kUndecided, {}, ""}, words);
  options.parse_reasoning = false;
  ReplyParser parser(std::move(options));
  std::vector<ReplyEvent> events;
  for (const char* token : {"T", "a", "/T", "b"}) parser.push(words.id(token), events);
  parser.finish(false, events);
  EXPECT_EQ(describe(events), R"(C"<think>a</think>b")");
}

TEST(ReplyParser, AForcedCallBeginsInsideItsArguments) {
  Words words;
  ReplyParserOptions options = options_for({"", Start::kContent, {}, ""}, words);
  options.forced_tool = "g";
  ReplyParser parser(std::move(options));
  std::vector<ReplyEvent> events;
  for (const char* token : {"{\"a\":", " 1", "}\n", "```"}) parser.push(words.id(token), events);
  parser.finish(false, events);
  EXPECT_EQ(describe(events), R"(start(0,g) args"{"a": 1}" end(0))");
  EXPECT_TRUE(parser.anomalies().empty());
}

}  // namespace
}  // namespace nibble
