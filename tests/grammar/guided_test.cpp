#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "nibble/grammar/compile_guided.h"
#include "nibble/grammar/json_grammar.h"
#include "nibble/grammar/structured_output.h"
#include "tests/grammar/random_walk.h"

namespace nibble {
namespace {

using testing::allows;
using testing::byte_trie;
using testing::compiled;
using ::testing::HasSubstr;
using testing::kR1VocabSize;
using testing::r1_trie;

Guided regex_of(std::string_view pattern) {
  Guided guided;
  guided.kind = Guided::Kind::kRegex;
  guided.text = pattern;
  return guided;
}

struct PatternCase {
  const char* pattern;
  std::vector<std::string> allowed;
  std::vector<std::string> refused;
};

TEST(Guided, ARegexMatchesTheWholeText) {
  for (const PatternCase& c : std::vector<PatternCase>{
           {"abc", {"abc"}, {"ab", "abcd", "xabc"}},
           {"^a|b$", {"a", "b"}, {"ab"}},
           {"a*b+c?", {"b", "aabbc"}, {"a", "c"}},
           {"(ab){2}|(?:x|y){1,2}?", {"abab", "x", "yx"}, {"ab", "xyx", ""}},
           {"[^a-c\\d]", {"d", "é", "\n"}, {"a", "5", "dd"}},
           {".", {"x", "日", "😀"}, {"\n", "xx"}},
           {"[\\w.-]+@\\w+\\.(com|org)", {"a.b-c@d.org"}, {"@d.org", "a@d.net"}},
           {"\\x41\\u00e9\\t\\.\\/", {"Aé\t./"}, {"Ae\t./"}},
           {"[]a]", {}, {"]"}},
           {"[\\]a-]", {"]", "a", "-"}, {"b"}},
           {"(a?){3}b", {"b", "aab", "aaab"}, {"aaaab"}},
           {"(a*)*b", {"b", "aaab"}, {"a"}},
           {"(?<year>\\d{4})", {"2024"}, {"202"}},
           {"", {""}, {"a"}},
           {"é{2}", {"éé"}, {"é"}}}) {
    SCOPED_TRACE(c.pattern);
    const auto grammar = guided_grammar(regex_of(c.pattern));
    if (c.allowed.empty()) continue;
    const auto compiled_grammar = compiled(regex_of(c.pattern), byte_trie());
    ASSERT_NE(compiled_grammar, nullptr);
    for (const std::string& text : c.allowed) EXPECT_TRUE(allows(compiled_grammar, text)) << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(allows(compiled_grammar, text)) << text;
  }
}

TEST(Guided, ASuffixStandsBehindWhatIsAskedFor) {
  Guided guided;
  guided.kind = Guided::Kind::kJsonSchema;
  // Recursive, so that rule 0 is called from inside.
  guided.text = R"({"type": "object", "properties": {"a": {"$ref": "#"}},
                    "additionalProperties": false})";
  guided.suffix = "\n```";
  const auto grammar = compiled(guided, byte_trie());
  ASSERT_NE(grammar, nullptr);
  for (const char* text : {"{}\n```", "{\"a\": {}}\n```"})
    EXPECT_TRUE(allows(grammar, text)) << text;
  for (const char* text : {"{}", "{}\n``", "{\"a\": {}\n```}", "\n```"}) {
    EXPECT_FALSE(allows(grammar, text)) << text;
  }
}

TEST(Guided, BadPatternsAreErrors) {
  for (const char* pattern : {"(", ")", "a)", "[a", "*a", "a**", "a{2,1}", "a{", "a{x}", "\\",
                              "[b-a]", "\\xZZ", "(?<n", "\xff", "[\\d-z]", "[]a]", "[]"}) {
    const auto grammar = guided_grammar(regex_of(pattern));
    ASSERT_FALSE(grammar.has_value()) << pattern;
    EXPECT_EQ(grammar.error().code, ErrorCode::kInvalidArgument) << pattern;
  }
  for (const char* pattern : {"(a)\\1", "(?=a)b", "(?!a)b", "(?<=a)b", "a\\b", "\\p{L}", "a^b",
                              "(^a)", "a{2000}", "a++", "(?i)a", "[[:alpha:]]", "\\q"}) {
    const auto grammar = guided_grammar(regex_of(pattern));
    ASSERT_FALSE(grammar.has_value()) << pattern;
    EXPECT_EQ(grammar.error().code, ErrorCode::kUnsupported) << pattern;
    EXPECT_THAT(grammar.error().message, HasSubstr("regex: "));
  }
}

// Repetitions of nothing add no nodes, so their number has a bound of its own.
TEST(Guided, ARegexOfManyEmptyRepetitionsIsRefusedAtOnce) {
  const auto grammar = guided_grammar(regex_of("((((){1000}){1000}){1000}){1000}a"));
  ASSERT_FALSE(grammar.has_value());
  EXPECT_THAT(grammar.error().message, HasSubstr("too large"));
}

TEST(Guided, AChoiceIsOneOfTheTexts) {
  Guided guided;
  guided.kind = Guided::Kind::kChoice;
  guided.choices = {"yes", "yesterday", "no", "né", "no"};
  const auto grammar = compiled(guided, byte_trie());
  for (const char* text : {"yes", "yesterday", "no", "né"}) EXPECT_TRUE(allows(grammar, text));
  for (const char* text : {"ye", "yester", "n", "nope", ""}) EXPECT_FALSE(allows(grammar, text));
  guided.choices = {"\xff"};
  EXPECT_FALSE(guided_grammar(guided).has_value());
  guided.choices.clear();
  EXPECT_FALSE(guided_grammar(guided).has_value());
}

Guided gbnf_of(std::string_view text) {
  Guided guided;
  guided.kind = Guided::Kind::kGrammar;
  guided.text = text;
  return guided;
}

TEST(Guided, AGbnfGrammarMatchesTheWholeText) {
  // Its form is that of llama.cpp's grammars/arithmetic.gbnf and list.gbnf.
  constexpr const char* kArithmetic = R"gbnf(# sums, line by line
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
)gbnf";
  for (const PatternCase& c : std::vector<PatternCase>{
           {kArithmetic, {"a=1\n", "x1 +(2*y) = 3\nb=c\n"}, {"", "a=1", "a==1\n", "(a=1\n"}},
           {"root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b]+ \"\\n\"",
            {"- a\n- é 日\n"},
            {"", "- \n", "- a", "a\n"}},
           {"root ::= \"a\" (\n  \"b\" |\n  \"c\"\n)  # a comment\n", {"ab", "ac"}, {"a", "abc"}},
           {"root ::= \"a\"\n  | \"b\"\n", {"a", "b"}, {"ab"}},
           {"root ::= x{2} y{1,} z{0,2}\nx ::= \"x\"\ny ::= \"y\"\nz ::= \"z\"",
            {"xxy", "xxyyzz"},
            {"xy", "xx", "xxyzzz"}},
           {"root ::= \"ab\"? .", {"ab\n", "é"}, {"", "ab", "a\n."}},
           {"root ::= \"\\\"\\\\\\x41\\u00e9\\U0001F600\" [\\]-a]?",
            {"\"\\Aé😀", "\"\\Aé😀]", "\"\\Aé😀_"},
            {"\"\\Ae", "\"\\Aé😀b"}},
           {"root ::= \"\" | \"a\" root", {"", "a", "aaaa"}, {"b"}},
           {"root ::= (\"a\"? | e)* \"b\"\ne ::=", {"b", "aab"}, {"a", "c"}},
           {"root ::= p\np ::= \"(\" p* \")\"", {"()", "(()(()))"}, {"", "(", "())"}}}) {
    SCOPED_TRACE(c.pattern);
    const auto grammar = compiled(gbnf_of(c.pattern), byte_trie());
    ASSERT_NE(grammar, nullptr);
    for (const std::string& text : c.allowed) EXPECT_TRUE(allows(grammar, text)) << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(allows(grammar, text)) << text;
  }
}

TEST(Guided, BadGbnfIsRefusedWithItsLine) {
  struct BadGrammar {
    const char* text;
    const char* message;
    ErrorCode code = ErrorCode::kInvalidArgument;
  };
  for (const BadGrammar& bad : std::vector<BadGrammar>{
           {"", "no rule 'root'"},
           {"a ::= \"b\"", "no rule 'root'"},
           {"root ::= \"a\"\nb ::= missing", "line 2: there is no rule 'missing'"},
           {"root ::= \"a\"\n\nroot ::= \"b\"",
            "line 3: the rule 'root' is there already, in line 1"},
           {"root = \"a\"", "line 1: expected '::=' behind 'root'"},
           {"root ::= \"a", "without its closing quote"},
           {"root ::= [a-", "'[' without ']'"},
           {"root ::= [b-a]", "ends swapped"},
           {"root ::= (\"a\"", "'(' without ')'"},
           {"root ::= \"a\")", "')' is not expected here"},
           {"root ::= * \"a\"", "'*' is not expected here"},
           {"root ::= \"a\"**", "two repetitions"},
           {"root ::= \"a\"{2,1}", "bounds swapped"},
           {"root ::= \"a\"{}", "without a number"},
           {"root ::= \"a\"{2000}", "more than 1000"},
           {"root ::= (((\"a\"{1000}){1000}){1000}){1000}", "too large"},
           {"root ::= ((((){1000}){1000}){1000}){1000}", "too large"},
           {"root ::= \"\\q\"", "a backslash before"},
           {"root ::= \"\\xZZ\"", "2 hex digits"},
           {"root ::= \"\\ud800\"", "no Unicode character"},
           {"root ::= \"\xff\"", "is not UTF-8"},
           {"root ::= root \"a\" | \"b\"", "refers to itself"},
           {"root ::= a\na ::= \"x\"? root \"y\" | \"z\"", "refers to itself"},
           {"root ::= \"a\" root", "can't be satisfied"},
           {"root ::= []", "can't be satisfied"},
           {"root ::= <think> \"a\"", "whole tokens", ErrorCode::kUnsupported}}) {
    SCOPED_TRACE(bad.text);
    const auto grammar = guided_grammar(gbnf_of(bad.text));
    ASSERT_FALSE(grammar.has_value());
    EXPECT_EQ(grammar.error().code, bad.code);
    EXPECT_THAT(grammar.error().message, HasSubstr(bad.message));
  }
  const auto deep = guided_grammar(
      gbnf_of("root ::= " + std::string(100, '(') + "\"a\"" + std::string(100, ')')));
  ASSERT_FALSE(deep.has_value());
  EXPECT_THAT(deep.error().message, HasSubstr("nested deeper"));
}

// What a request may bring must not take the engine's time.
TEST(Guided, LargeGbnfIsReadInTimeOfItsSize) {
  const auto begin = std::chrono::steady_clock::now();
  std::string points;  // every second one
  for (uint32_t point = 0x4E00; point < 0x9E00; point += 2) {
    points += static_cast<char>(0xE0 | point >> 12);
    points += static_cast<char>(0x80 | (point >> 6 & 0x3F));
    points += static_cast<char>(0x80 | (point & 0x3F));
  }
  EXPECT_TRUE(guided_grammar(gbnf_of("root ::= [" + points + "]")).has_value());

  std::string names = "root ::=";
  for (int i = 0; i < 30000; ++i) names += " r" + std::to_string(i);
  const auto many = guided_grammar(gbnf_of(names));
  ASSERT_FALSE(many.has_value());
  EXPECT_THAT(many.error().message, HasSubstr("more than 4096 rules"));

  // Every rule may be empty because the next one may, with a long one to look through each time.
  for (const bool forwards : {true, false}) {
    std::string chain = "root ::= r0 \"x\"\nbig ::= ((e?){300}){300}\ne ::= \"\"\n";
    for (int i = 0; i < 4000; ++i) {
      const int rule = forwards ? i : 3999 - i;
      chain += "r" + std::to_string(rule) +
               " ::= " + (rule == 3999 ? "big" : "r" + std::to_string(rule + 1)) + "\n";
    }
    const auto grammar = guided_grammar(gbnf_of(chain));
    EXPECT_TRUE(grammar.has_value()) << grammar.error().message;
  }
  // Not a measurement: seconds to minutes where these were not looked after.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

// A text of n letters stands in 2^n places here.
TEST(Guided, AnAmbiguousGrammarComesToAnEnd) {
  std::string text = "root ::= \"\"";
  for (char c = 'a'; c <= 'z'; ++c) {
    text += std::string(" | \"") + c + "\" root \"b\" | \"" + c + "\" root \"c\"";
  }
  const auto grammar = compiled(gbnf_of(text), byte_trie());
  std::string read;
  TokenMask mask(byte_trie()->vocab_size());
  bool is_dead = false;
  while (read.size() < 40 && !is_dead) {
    read += 'a';
    const auto walk = grammar->advance(grammar->start(), read);
    ASSERT_FALSE(walk.is_stale);
    is_dead = walk.state.id == CompiledGrammar::kDead;
    ASSERT_TRUE(grammar->fill_mask(walk.state, &mask));
  }
  EXPECT_TRUE(is_dead);  // too ambiguous to go on with
  EXPECT_LT(read.size(), 20U);
}

TEST(GuidedCache, KeepsTheLatestAndTellsRequestsApart) {
  GuidedCache cache(byte_trie(), 2);
  const auto first = cache.compile(regex_of("a")).value();
  EXPECT_EQ(cache.compile(regex_of("a")).value(), first);
  const auto second = cache.compile(regex_of("b")).value();
  EXPECT_NE(second, first);
  EXPECT_EQ(cache.compile(regex_of("a")).value(), first);  // now the newest
  EXPECT_TRUE(cache.compile(regex_of("c")).has_value());   // "b" goes
  EXPECT_EQ(cache.compile(regex_of("a")).value(), first);
  EXPECT_NE(cache.compile(regex_of("b")).value(), second);
  EXPECT_FALSE(cache.compile(regex_of("(")).has_value());
}

class StructuredOutputTest : public ::testing::Test {
 protected:
  static constexpr int32_t kThink = 128798;
  static constexpr int32_t kEndThink = 128799;
  static constexpr StructuredOutput::Tags kTags = {kThink, kEndThink};

  std::shared_ptr<CompiledGrammar> grammar_ =
      compiled({.kind = Guided::Kind::kJsonObject}, r1_trie());
  TokenMask mask_ = TokenMask(kR1VocabSize);

  // The token of exactly these bytes.
  static int32_t token(std::string_view bytes) {
    for (const int32_t id : r1_trie()->ids()) {
      if (r1_trie()->token_bytes(id) == bytes) return id;
    }
    ADD_FAILURE() << "no token " << bytes;
    return -1;
  }
};

TEST_F(StructuredOutputTest, ContentCanBeginAtOnceOrBehindThinking) {
  StructuredOutput output(grammar_, StructuredOutput::Phase::kStart, kTags);
  ASSERT_TRUE(output.fill_mask(&mask_));
  EXPECT_TRUE(mask_.allows(kThink));
  EXPECT_TRUE(mask_.allows(token("{")));
  EXPECT_FALSE(mask_.allows(token("\n")));
  EXPECT_FALSE(mask_.allows(token("a")));
  EXPECT_FALSE(output.accept(token("a")));
  ASSERT_TRUE(output.accept(kThink));
  EXPECT_FALSE(output.fill_mask(&mask_));  // anything
  ASSERT_TRUE(output.accept(token("}")));  // a thought, not content
  EXPECT_FALSE(output.is_complete());
  ASSERT_TRUE(output.accept(kEndThink));
  EXPECT_EQ(output.phase(), StructuredOutput::Phase::kAfter);
}

TEST_F(StructuredOutputTest, AtMostTwoNewlineTokensFollowTheTag) {
  StructuredOutput output(grammar_, StructuredOutput::Phase::kReasoning, kTags);
  ASSERT_TRUE(output.accept(kEndThink));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(output.fill_mask(&mask_));
    EXPECT_TRUE(mask_.allows(token("\n\n")));
    EXPECT_TRUE(mask_.allows(token("{")));
    EXPECT_FALSE(mask_.allows(kEndThink));
    ASSERT_TRUE(output.accept(token("\n\n")));
  }
  ASSERT_TRUE(output.fill_mask(&mask_));
  EXPECT_FALSE(mask_.allows(token("\n\n")));
  EXPECT_FALSE(output.accept(token("\n")));
  ASSERT_TRUE(output.accept(token("{")));
  ASSERT_TRUE(output.accept(token("}")));
  EXPECT_TRUE(output.is_complete());
}

// A window of drafts with the closing tag inside: the drafts behind it are judged by the grammar.
TEST_F(StructuredOutputTest, ArmsInsideAWindowAndRollsBackOutOfIt) {
  StructuredOutput output(grammar_, StructuredOutput::Phase::kReasoning, kTags);
  ASSERT_TRUE(output.accept(token("a")));
  ASSERT_TRUE(output.accept(kEndThink));
  ASSERT_TRUE(output.accept(token("\n")));
  EXPECT_FALSE(output.accept(token("a")));
  ASSERT_TRUE(output.accept(token("{")));
  output.rollback(3);
  EXPECT_EQ(output.phase(), StructuredOutput::Phase::kReasoning);
  EXPECT_FALSE(output.fill_mask(&mask_));
  ASSERT_TRUE(output.accept(kEndThink));
  ASSERT_TRUE(output.accept(token("{")));
  ASSERT_TRUE(output.accept(token("}")));
  EXPECT_TRUE(output.is_complete());
  EXPECT_TRUE(output.accept(testing::kR1Eos));
}

TEST_F(StructuredOutputTest, WithoutTagsEverythingIsContent) {
  StructuredOutput output(grammar_, StructuredOutput::Phase::kContent, {});
  ASSERT_TRUE(output.fill_mask(&mask_));
  EXPECT_FALSE(mask_.allows(kThink));
  EXPECT_FALSE(output.accept(kThink));
  EXPECT_TRUE(output.accept(token("{")));
}

}  // namespace
}  // namespace nibble
