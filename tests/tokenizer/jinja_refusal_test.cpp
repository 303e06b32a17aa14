// What the interpreter refuses: unknown constructs when a template is loaded, hostile ones when
// they exceed the limits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "nibble/tokenizer/jinja_template.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string jinja_load_error(const std::string& source, ErrorCode* code = nullptr) {
  const auto parsed = jinja::Template::parse(source);
  if (parsed) return "no error";
  if (code != nullptr) *code = parsed.error().code;
  return parsed.error().message;
}

std::string jinja_run_error(const std::string& source, const jinja::RenderOptions& options = {}) {
  const auto parsed = jinja::Template::parse(source);
  if (!parsed) return "does not load: " + parsed.error().message;
  const auto text = parsed->render({}, options);
  return text ? "no error" : text.error().message;
}

TEST(JinjaRefusal, UnsupportedConstructsAreNamedWithTheirLineWhenLoaded) {
  const std::pair<const char*, const char*> kCases[] = {
      {"a\nb\n{{ x | groupby('y') }}", "line 3: unsupported filter 'groupby'; supported: count, "},
      {"{% include 'x' %}", "line 1: unsupported statement 'include'; supported: if, for, set"},
      {"\n{% block b %}{% endblock %}", "line 2: unsupported statement 'block'"},
      {"{% call f() %}{% endcall %}", "line 1: unsupported statement 'call'"},
      {"{% filter upper %}{% endfilter %}", "line 1: unsupported statement 'filter'"},
      {"{{ x is divisibleby 3 }}", "line 1: unsupported test 'divisibleby'; supported: !=, =="},
      {"{{ x.append(1) }}", "line 1: unsupported method 'append'; supported: endswith, get"},
      {"{{ lipsum() }}", "line 1: unsupported function 'lipsum'; supported: macros of this"},
      {"{{ 2 ** 3 }}", "line 1: unsupported operator '**'"},
      {"{{ x.__class__ }}", "line 1: unsupported attribute '__class__'"},
      {"{% for i in x %}{{ loop.cycle(1, 2) }}{% endfor %}",
       "line 1: unsupported attribute 'loop.cycle'; supported: index, index0"},
      {"{% for i in x recursive %}{% endfor %}", "line 1: unsupported recursive loop"},
      {"{% for i in x %}{% macro f() %}{% endmacro %}{% endfor %}", "line 1: a macro inside of a"},
      {"{% macro f() %}{{ varargs }}{% endmacro %}", "line 1: unsupported variable 'varargs'"},
      {"{{ f(*x) }}", "line 1: unsupported '*' before an argument"},
      {"{{ x | tojson(separators=(',', ':')) }}",
       "line 1: filter 'tojson' has no argument 'separators'; supported: ensure_ascii, indent"},
      {"{{ x | map('nope') }}", "line 1: unsupported filter 'nope'"},
      {"{{ x | selectattr('a', 'nope') }}", "line 1: unsupported test 'nope'"},
      {"{{ (x | safe) ~ '&' }}", "line 1: filter 'safe' is supported only at the end of {{ }}"},
      {"{{ 99999999999999999999 }}", "line 1: the integer 99999999999999999999 is beyond 64 bits"},
      {"{{ 0x1f }}", "line 1: numbers are decimal, found '0x'"},
      {"{{ {1: 2} }}", "line 1: the keys of a mapping are strings"},
      {"{{ '\\N{DASH}' }}", "line 1: '\\N{...}' is not supported, use \\u"},
  };
  for (const auto& [source, message] : kCases) {
    ErrorCode code = ErrorCode::kCancelled;
    EXPECT_THAT(jinja_load_error(source, &code), StartsWith(message)) << source;
    EXPECT_EQ(code, ErrorCode::kUnsupported) << source;
  }
}

TEST(JinjaRefusal, BadSyntaxIsNamedWithItsLine) {
  const std::pair<const char*, const char*> kCases[] = {
      {"{% if x %}", "line 1: expected 'elif' or 'else' or 'endif', found the end of the template"},
      {"a\n{{ x", "line 2: a tag has no end '}}'"},
      {"{% for x %}{% endfor %}", "line 1: expected 'in', found '%}'"},
      {"{{ x + }}", "line 1: expected an expression, found '}}'"},
      {"{{ 'x }}", "line 1: a string has no end"},
      {"\xff", "malformed UTF-8 at byte 0"},
      {"{{ f(a=1, a=2) }}", "line 1: argument 'a' is given twice"},
  };
  for (const auto& [source, message] : kCases) {
    ErrorCode code = ErrorCode::kCancelled;
    EXPECT_THAT(jinja_load_error(source, &code), StartsWith(message)) << source;
    EXPECT_EQ(code, ErrorCode::kInvalidArgument) << source;
  }
}

TEST(JinjaRefusal, NestingEndsInAnErrorBeforeTheStackDoes) {
  const auto repeat = [](std::string_view part, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += part;
    return out;
  };
  const std::pair<std::string_view, std::string_view> kBrackets[] = {
      {"(", ")"},          {"[", "]"},   {"{'a':", "}"}, {"x[", "]"},
      {"x|default(", ")"}, {"not ", ""}, {"-", ""},      {"x if x else ", ""}};
  for (const auto& [opening, closing] : kBrackets) {
    const std::string source =
        "{{ " + repeat(opening, 20'000) + "1" + repeat(closing, 20'000) + " }}";
    EXPECT_THAT(jinja_load_error(source), HasSubstr("nesting deeper than")) << opening;
  }
  for (const std::string_view suffix : {".a", "[0]", "|d", " is d", "[1:]"}) {
    EXPECT_NE(jinja_load_error("{{ x" + repeat(suffix, 20'000) + " }}"), "no error") << suffix;
  }
  EXPECT_THAT(jinja_load_error(repeat("{% if x %}", 20'000)), HasSubstr("nesting"));
  EXPECT_THAT(
      jinja_load_error("{% for " + repeat("(", 20'000) + "a" + repeat(")", 20'000) + " in x %}"),
      HasSubstr("nesting"));
  // Long, but flat.
  EXPECT_EQ(jinja_run_error("{{ 1" + repeat(" + 1", 100'000) + " }}"), "no error");
  EXPECT_EQ(jinja_run_error("{% if false %}" + repeat("{% elif false %}", 10'000) + "{% endif %}"),
            "no error");
}

TEST(JinjaRefusal, EndlessRecursionEndsInAnError) {
  EXPECT_THAT(jinja_run_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("nest deeper than"));
  EXPECT_THAT(jinja_run_error("{% macro f(x=g()) %}{{ [[[[g()]]]] }}{% endmacro %}"
                              "{% macro g() %}{{ (((((f()))))) }}{% endmacro %}{{ f() }}"),
              HasSubstr("nest deeper than"));
}

TEST(JinjaRefusal, HostileLoopsEndInAnError) {
  const std::string big = "{% for i in range(100000) %}";
  EXPECT_THAT(jinja_run_error(big + big + "{% endfor %}{% endfor %}"), HasSubstr("steps"));
  EXPECT_THAT(jinja_run_error("{{ range(100001) }}"), HasSubstr("longer than 100000"));
  // Doubling, by which a few lines could fill any memory.
  EXPECT_THAT(jinja_run_error("{% set ns = namespace(s='xx') %}{% for i in range(64) %}"
                              "{% set ns.s = ns.s ~ ns.s %}{% endfor %}"),
              HasSubstr("bytes of values"));
  EXPECT_THAT(jinja_run_error("{{ 'xxxxxxxx' * 4000000000000000000 }}"), HasSubstr("bytes"));
  EXPECT_THAT(jinja_run_error("{{ [1, 2] * 4000000000000000000 }}"), HasSubstr("bytes"));
  // A list of two of itself, a hundred times: small in memory, 2^100 elements when walked.
  const std::string shared =
      "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% endfor %}";
  jinja::RenderOptions few;
  few.limits.max_steps = 100'000;
  EXPECT_THAT(jinja_run_error(shared + "{{ ns.x }}", few), HasSubstr("steps"));
  EXPECT_THAT(jinja_run_error(shared + "{{ ns.x | tojson }}", few), HasSubstr("steps"));
  EXPECT_THAT(jinja_run_error(shared + "{{ ns.x + [] == ns.x + [] }}", few), HasSubstr("steps"));
  EXPECT_THAT(jinja_run_error("{% set ns = namespace(x=[]) %}{% for i in range(1000) %}"
                              "{% set ns.x = [ns.x] %}{% endfor %}"),
              HasSubstr("nest deeper than 100"));
}

TEST(JinjaRefusal, TheLimitsAreTheCallersToSet) {
  jinja::RenderOptions options;
  options.limits.max_output_bytes = 10;
  EXPECT_EQ(jinja_run_error("0123456789", options), "no error");
  EXPECT_THAT(jinja_run_error("0123456789a", options), HasSubstr("writes more than 10 bytes"));
  EXPECT_THAT(jinja_run_error("{% for i in range(6) %}{{ 'ab' }}{% endfor %}", options),
              HasSubstr("writes more than 10 bytes"));
}

TEST(JinjaRefusal, ErrorsWhileRenderingNameTheLineOfTheStatement) {
  EXPECT_EQ(jinja_run_error("a\n{% if true %}\n{{ x.y }}\n{% endif %}"),
            "line 3: 'x' is undefined");
  EXPECT_EQ(jinja_run_error("\n{{ raise_exception('Roles must alternate') }}"),
            "line 2: the chat template refuses: Roles must alternate");
  EXPECT_EQ(jinja_run_error("{{ 9223372036854775807 + 1 }}"),
            "line 1: the result is an integer beyond 64 bits, which is not supported");
  EXPECT_EQ(jinja_run_error("{{ 'stra\u00dfe' | upper }}"),
            "line 1: upper of U+00DF is not supported");
}

TEST(Jinja, StrftimeNowShowsTheGivenTime) {
  const auto parsed = jinja::Template::parse("{{ strftime_now('%Y') }}{{ strftime_now('') }}");
  ASSERT_TRUE(parsed) << parsed.error().message;
  jinja::RenderOptions options;
  options.now = 1'000'000'000;  // in September 2001, wherever one is
  EXPECT_EQ(*parsed->render({}, options), "2001");
}

}  // namespace
}  // namespace nibble
