// The tables of spec serving sections 4.3 and 4.4, each case cut into steps at every place.
#include "nibble/server/reply_parser.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/server/reply_cases.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;
using Case = testing::ReplyCase;
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
  for (const Case& c : testing::reasoning_cases()) {
    check(c);
  }
}

TEST(ReplyParser, ToolCasesOfTheSpecification) {
  for (const Case& c : testing::tool_cases()) {
    check(c);
  }
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

TEST(ReplyParser, AGivenHeadOpensACallInAnyState) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> before = {
      {{}, ""},
      {{"Sure."}, "C\"Sure.\" "},
      {{"CB"}, ""},
      {{"CB", "cb", "f", "SEP", "{}", "ce", "cb"}, "start(0,f) args\"{}\" end(0) "}};
  for (const auto& [tokens, expected] : before) {
    SCOPED_TRACE(expected);
    Words words;
    ReplyParser parser(options_for({"", Start::kContent, {}, ""}, words));
    std::vector<ReplyEvent> events;
    for (const std::string& token : tokens) parser.push(words.id(token), events);
    parser.open_call("g", events);
    for (const char* token : {"{\"a\":", " 1", "}\n", "```"}) parser.push(words.id(token), events);
    parser.close_call(events);
    parser.finish(false, events);
    const std::string index = std::to_string(parser.num_calls() - 1);
    EXPECT_EQ(describe(events),
              expected + "start(" + index + ",g) args\"{\"a\": 1}\" end(" + index + ")");
    EXPECT_TRUE(parser.anomalies().empty());
  }
}

}  // namespace
}  // namespace nibble
