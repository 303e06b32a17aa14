#include "nibble/grammar/json_schema.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/grammar/random_walk.h"

namespace nibble {
namespace {

using testing::allows;
using testing::allows_prefix;
using testing::byte_trie;
using testing::compiled;
using ::testing::HasSubstr;
using testing::r1_trie;
using testing::random_walk;
using testing::schema_of;

struct SchemaCase {
  const char* schema;
  std::vector<std::string> allowed;
  std::vector<std::string> refused;
};

const std::vector<SchemaCase>& schema_cases() {
  static const std::vector<SchemaCase> kCases = {
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},
           "required":["a"],"additionalProperties":false})",
       {R"({"a":1})", R"({"a": 1, "b": "x"})", "{\n  \"a\": 1,\n  \"b\": \"\"\n}", R"({ "a":-7 })"},
       {"{}", R"({"b":"x"})", R"({"b":"x","a":1})", R"({"a":1,"c":2})", R"({"a":1.5})",
        R"({"a":"1"})", R"({"a":1,})", R"({"a":1}x)", R"({"a" :1})", R"({  "a":1})"}},
      {R"({"type":"object","properties":{"a":{"type":"null"},"b":{"type":"null"},
           "c":{"type":"null"}},"required":["b"]})",
       {R"({"b":null})", R"({"a":null,"b":null})", R"({"b":null,"c":null})",
        R"({"a":null,"b":null,"c":null})"},
       {"{}", R"({"a":null})", R"({"a":null,"c":null})", R"({"c":null,"b":null})",
        R"({"b":null,"d":null})"}},
      {R"({"properties":{"ab":{"type":"integer"}},"additionalProperties":{"type":"boolean"}})",
       {"{}", R"({"ab":1})", R"({"ab":1,"abc":true})", R"({"a":true,"x":false})", R"({"":true})",
        R"({"é":true})"},
       {R"({"ab":true})", R"({"a":1})", R"({"a":true,"ab":1})", R"({"ab":1,"ab":true})",
        R"({"a\u0062":true})"}},
      {R"({"properties":{"é":{"const":1}},"additionalProperties":{"const":2}})",
       {R"({"é":1,"日":2,"e":2})", R"({"éa":2})"},
       {R"({"é":2})", "{\"\xc3\":2}"}},
      {R"({"type":"object"})",
       {"{}", "{ }", R"({"a":[1,{"b":null}],"c":"\n"})"},
       {"[]", "1", R"({"a":})", "{,}"}},
      {R"({"type":"object","additionalProperties":false})", {"{}", "{ }"}, {R"({"a":1})"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})",
       {"[1]", "[1, 2,3]", "[\n 1,\n 2\n]"},
       {"[]", "[1,2,3,4]", "[1,]", "[,1]", R"(["1"])"}},
      {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}]})",
       {"[]", "[1]", R"([1,"a"])"},
       {R"(["a"])", R"([1,"a",2])", "[1,2]"}},
      {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],
           "items":{"type":"null"},"minItems":1,"maxItems":4})",
       {"[1]", R"([1,"a"])", R"([1,"a",null])", R"([1,"a",null,null])"},
       {"[]", R"([1,"a",null,null,null])", R"([1,"a",2])", "[1,null]"}},
      {R"({"items":false})", {"[]"}, {"[1]"}},
      {R"({"enum":["a\"b",1,null,{"k":[true,2.5]},"a"]})",
       {R"("a\"b")", "1", "null", R"({"k":[true,2.5]})", R"({"k": [true, 2.5]})", R"("a")"},
       {R"("b")", "2", R"({"k":[]})", R"({})"}},
      {R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}},
      {R"({"const":-0.5})", {"-0.5"}, {"0.5", "-0.51"}},
      {R"({"type":["integer","null"]})", {"5", "null"}, {"5.0", "true", R"("a")"}},
      {R"({"type":"number"})",
       {"0", "-1.5", "1e10", "2.5E-3", "-0", "123456789012345678"},
       {"01", "1.", ".5", "+1", "1e", "1e999", "1234567890123456789", "NaN"}},
      {R"({"type":"integer"})", {"0", "-12", "999999999999999999"}, {"-0", "1.0", "00", "1e3"}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("日本語")", R"("\n\"")", R"("\ud83d\ude00x")"},
       {R"("a")", R"("abcd")", R"("\u0041")", "\"\xff\xff\""}},
      {R"({"type":"string"})",
       {R"("")", R"("\u00e9\/\\")", "\"\x7f\""},
       {R"("\ud800")", R"("\ude00")", R"("\ud800\u0041")", "\"\n\"", R"("\x41")", "\"a",
        "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\xf5\x80\x80\x80\""}},
      {R"({"type":"string","pattern":"^[a-c]{2,3}$"})",
       {R"("ab")", R"("abc")"},
       {R"("a")", R"("abca")", R"("abd")"}},
      {R"({"type":"string","pattern":"b+"})", {R"("b")", R"("abbc")"}, {R"("")", R"("ac")"}},
      {R"({"type":"string","pattern":"^a.\"\\n\\\\$"})", {R"("a日\"\n\\")"}, {R"("a日")"}},
      {R"({"type":"string","pattern":"^x|y$"})", {R"("xa")", R"("ay")"}, {R"("ax")", R"("ya")"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"array","items":{"$ref":"#"}}]})",
       {"1", "[1,[2,[]]]"},
       {R"("a")", "[null]"}},
      {R"({"type":"object","oneOf":[{"properties":{"k":{"const":"a"}},"required":["k"]},
           {"properties":{"k":{"const":"b"},"n":{"type":"null"}},"required":["k"]}]})",
       {R"({"k":"a"})", R"({"k":"b"})", R"({"k":"b","n":null})"},
       {R"({"k":"a","n":null})", "{}", R"({"k":"c"})"}},
      {R"({"allOf":[{"$ref":"#/$defs/base"},{"properties":{"b":{"type":"integer"}}}],
           "required":["b"],"$defs":{"base":{"type":"object","properties":{"a":{"type":"null"}},
           "required":["a"]}}})",
       {R"({"a":null,"b":1})"},
       {R"({"a":null})", R"({"b":1})"}},
      {R"({"$defs":{"a/b~c":{"const":7}},"$ref":"#/$defs/a~1b~0c"})", {"7"}, {"8"}},
      {R"({"type":"object","properties":{"v":{"type":"integer"},"next":{"$ref":"#"}},
           "required":["v"]})",
       {R"({"v":1})", R"({"v":1,"next":{"v":2,"next":{"v":3}}})"},
       {R"({"v":1,"next":{}})"}},
      {R"({"required":["z"],"properties":{"y":{"type":"null"}}})",
       {R"({"z":[1]})", R"({"y":null,"z":0})"},
       {R"({"y":null})"}},
      {"true", {"1", "{}", R"([["a"]])", "null"}, {"", "nul", "]"}},
      {R"({"title":"t","description":"d","default":3,"uniqueItems":false})", {"1"}, {}},
      {R"({"type":"string","format":"date"})",
       {R"("2024-02-29")", R"("2000-02-29")", R"("0400-02-29")", R"("1999-12-31")"},
       {R"("2023-02-29")", R"("1900-02-29")", R"("2024-04-31")", R"("2024-13-01")",
        R"("0000-02-29")", R"("24-01-01")"}},
      {R"({"type":"string","format":"date-time"})",
       {R"("2024-02-29T23:59:59Z")", R"("2024-01-01T00:00:00.125+01:30")"},
       {R"("2024-01-01")", R"("2024-01-01T24:00:00Z")", R"("2024-01-01T00:00:00")"}},
      {R"({"type":"string","format":"uuid"})",
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567e89b12d3a456426614174000")"}},
      {R"({"type":"string","format":"ipv4"})",
       {R"("0.0.0.0")", R"("255.249.199.9")"},
       {R"("256.0.0.1")", R"("1.2.3")", R"("01.2.3.4")"}},
  };
  return kCases;
}

// By the rules of JSON schema (draft 2020-12) and the form of json_grammar.h.
TEST(JsonSchema, AllowsAndRefusesTheseDocuments) {
  for (const SchemaCase& c : schema_cases()) {
    SCOPED_TRACE(c.schema);
    const auto grammar = compiled(schema_of(c.schema), byte_trie());
    ASSERT_NE(grammar, nullptr);
    for (const std::string& text : c.allowed) EXPECT_TRUE(allows(grammar, text)) << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(allows(grammar, text)) << text;
  }
}

// Every split of an allowed document into tokens has the state of its bytes in a row, so what is to
// be shown is each prefix, and tokens of any length over the real vocabulary.
TEST(JsonSchema, EveryPrefixOfAnAllowedDocumentIsAcceptedAtEveryTokenSplit) {
  std::mt19937 rng(31);
  for (const SchemaCase& c : schema_cases()) {
    const auto grammar = compiled(schema_of(c.schema), r1_trie());
    const auto nodes = r1_trie()->nodes();
    const auto ids = r1_trie()->ids();
    for (const std::string& text : c.allowed) {
      for (int round = 0; round < 3; ++round) {
        GrammarMatcher matcher(grammar);
        for (size_t at = 0; at < text.size();) {
          // All tokens that the text goes on with, from the trie; one of them by chance.
          std::vector<int32_t> fits;
          for (int32_t n = 0; n < r1_trie()->num_nodes();) {
            const auto& node = nodes[static_cast<size_t>(n)];
            const size_t place = at + node.depth - 1;
            if (place >= text.size() || static_cast<uint8_t>(text[place]) != node.byte) {
              n = node.end;
              continue;
            }
            const int32_t end = nodes[static_cast<size_t>(n) + 1].first_id;
            if (node.first_id < end) fits.push_back(ids[static_cast<size_t>(node.first_id)]);
            ++n;
          }
          ASSERT_FALSE(fits.empty());
          for (const int32_t id : fits) {
            ASSERT_TRUE(matcher.accept(id)) << c.schema << ' ' << text << " at " << at;
            matcher.rollback(1);
          }
          const int32_t id = fits[rng() % fits.size()];
          ASSERT_TRUE(matcher.accept(id));
          at += r1_trie()->token_bytes(id).size();
        }
        EXPECT_TRUE(matcher.is_complete()) << text;
      }
    }
  }
}

// Random tokens of the real vocabulary always end in a document that a strict parser reads.
TEST(JsonSchema, RandomWalksEndInJson) {
  std::mt19937 rng(12);
  for (const SchemaCase& c : schema_cases()) {
    const auto grammar = compiled(schema_of(c.schema), r1_trie());
    for (int round = 0; round < 3; ++round) {
      GrammarMatcher matcher(grammar);
      const std::string text = random_walk(matcher, *r1_trie(), rng, 20);
      EXPECT_TRUE(nlohmann::json::accept(text)) << c.schema << '\n' << text.substr(0, 300);
      EXPECT_TRUE(allows(grammar, text));
    }
  }
  Guided any_object;
  const auto grammar = compiled(any_object, r1_trie());
  for (int round = 0; round < 20; ++round) {
    GrammarMatcher matcher(grammar);
    const std::string text = random_walk(matcher, *r1_trie(), rng, 60);
    const auto parsed = nlohmann::json::parse(text, nullptr, false);
    EXPECT_TRUE(parsed.is_object()) << text;
  }
}

TEST(JsonSchema, IntegerBoundsHoldExactly) {
  struct Bounds {
    const char* schema;
    int64_t min;
    int64_t max;
  };
  for (const Bounds& b : std::vector<Bounds>{
           {R"({"type":"integer","minimum":0,"maximum":150})", 0, 150},
           {R"({"type":"integer","minimum":-25,"maximum":7})", -25, 7},
           {R"({"type":"integer","exclusiveMinimum":9,"exclusiveMaximum":110})", 10, 109},
           {R"({"type":"integer","minimum":-1000,"maximum":-99})", -1000, -99},
           {R"({"type":"integer","minimum":0.5,"maximum":3.5})", 1, 3},
           {R"({"type":"integer","exclusiveMinimum":1.5,"maximum":2})", 2, 2},
           {R"({"type":"integer","minimum":1200})", 1200, 1 << 30}}) {
    const auto grammar = compiled(schema_of(b.schema), byte_trie());
    for (int64_t i = -2100; i < 2100; ++i) {
      EXPECT_EQ(allows(grammar, std::to_string(i)), b.min <= i && i <= b.max) << b.schema << i;
    }
  }
}

TEST(JsonSchema, UnsupportedPartsAreRefusedByPointerOrLeftOut) {
  struct Refused {
    const char* schema;
    const char* message;
    const char* still_allowed;  // when not strict
  };
  for (const Refused& r : std::vector<Refused>{
           {R"({"type":"array","items":{"type":"integer","multipleOf":2}})",
            "unsupported_schema: /items/multipleOf", "[3]"},
           {R"({"properties":{"a/b":{"not":{}}}})", "/properties/a~1b/not", R"({"a/b":1})"},
           {R"({"type":"array","uniqueItems":true})", "/uniqueItems", "[1,1]"},
           {R"({"type":"number","minimum":0})", "/minimum: bounds are supported for integers only",
            "-1"},
           {R"({"type":"string","format":"email"})", "format 'email' is not supported", R"("x")"},
           {R"({"type":"string","pattern":"(a)\\1"})", "a back reference", R"("x")"},
           {R"x({"type":"string","pattern":"^(?=a)"})x", "a look-around", R"("x")"},
           {R"({"type":"string","pattern":"a","maxLength":3})", "beside pattern", R"("aaaa")"},
           {R"({"type":"object","patternProperties":{"a":{}}})", "/patternProperties", "{}"},
           {R"({"if":{},"then":{}})", "/if", "1"}}) {
    const auto strict = json_schema_grammar(r.schema, true);
    ASSERT_FALSE(strict.has_value()) << r.schema;
    EXPECT_EQ(strict.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(strict.error().message, HasSubstr("unsupported_schema"));
    EXPECT_THAT(strict.error().message, HasSubstr(r.message));
    const auto lenient = compiled(schema_of(r.schema, false), byte_trie());
    ASSERT_NE(lenient, nullptr);
    EXPECT_TRUE(allows(lenient, r.still_allowed)) << r.schema;
  }
}

TEST(JsonSchema, BadSchemasAreErrors) {
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += R"({"items":)";
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "not JSON"},
      {"{", "not JSON"},
      {"[]", "a schema is an object"},
      {R"({"type":"text"})", "/type"},
      {R"({"type":5})", "/type"},
      {R"({"properties":[1]})", "/properties"},
      {R"({"properties":{"a":3}})", "/properties/a: a schema is"},
      {R"({"type":"object","required":"a"})", "/required"},
      {R"({"anyOf":[]})", "anyOf is not a list"},
      {R"({"enum":3})", "enum is not a list"},
      {R"({"type":"string","minLength":-1})", "/minLength"},
      {R"({"type":"array","maxItems":1.5})", "/maxItems"},
      {R"({"type":"integer","minimum":"0"})", "/minimum"},
      {R"({"type":"string","pattern":"[a"})", "'[' without ']'"},
      {R"({"$ref":"#/$defs/none"})", "points to nothing"},
      {R"({"$ref":"http://example.com/s"})", "out of the document"},
      {R"({"$ref":3})", "$ref is not a text"},
      {deep, "deeper"},
      {std::string(2 << 20, ' '), "at most"},
      // Nothing satisfies these.
      {"false", "can't be satisfied"},
      {R"({"enum":[]})", "can't be satisfied"},
      {R"({"type":"integer","minimum":5,"maximum":4})", "can't be satisfied"},
      {R"({"type":"string","minLength":5,"maxLength":4})", "can't be satisfied"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})",
       "can't be satisfied"},
      {R"({"required":["a"],"additionalProperties":false})", "can't be satisfied"},
      {R"({"allOf":[{"type":"string"},{"type":"integer"}]})", "can't be satisfied"},
      {R"({"$ref":"#"})", "can't be satisfied"},
      // These refer to themselves before anything is written.
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", "refers to itself"},
      {R"({"allOf":[{"$ref":"#"}]})", "don't end"},
  };
  for (const auto& [schema, message] : cases) {
    const auto grammar = json_schema_grammar(schema, true);
    ASSERT_FALSE(grammar.has_value()) << schema.substr(0, 100);
    EXPECT_EQ(grammar.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(grammar.error().message, HasSubstr(message)) << schema.substr(0, 100);
  }
}

TEST(JsonSchema, AnUnsatisfiableBranchIsLeftOutNotOffered) {
  const auto grammar = compiled(
      schema_of(R"({"properties":{"a":false,"b":{"anyOf":[{"enum":[]},{"type":"null"}]}}})"),
      byte_trie());
  EXPECT_FALSE(allows_prefix(grammar, R"({"a)"));
  EXPECT_TRUE(allows(grammar, R"({"b":null})"));
}

TEST(JsonSchema, LargeSchemasCompileAndMultiplyingOnesAreRefused) {
  std::string values;
  for (int i = 0; i < 15000; ++i)
    values += fmt::format("{}\"value number {}\"", i > 0 ? "," : "", i);
  const auto grammar = compiled(schema_of("{\"enum\":[" + values + "]}"), byte_trie());
  EXPECT_TRUE(allows(grammar, "\"value number 14999\""));
  EXPECT_FALSE(allows(grammar, "\"value number 15000\""));

  const auto repeated =
      json_schema_grammar(R"({"type":"string","pattern":"(((a{900}){900}){900}){900}"})", true);
  ASSERT_FALSE(repeated.has_value());
}

}  // namespace
}  // namespace nibble
