// The scorers against the specification's tables of cases, and where those say nothing.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "nibble/eval/extract.h"
#include "nibble/eval/math_equal.h"

namespace nibble {
namespace {

nlohmann::json cases(const std::string& name, size_t count) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/eval/data/" + name + ".json");
  nlohmann::json all = nlohmann::json::parse(file)["cases"];
  EXPECT_EQ(all.size(), count);
  return all;
}

TEST(EvalExtract, FindsEveryBoxOfTheTable) {
  for (const auto& row : cases("boxed_cases", 20)) {
    SCOPED_TRACE(row.dump());
    const auto part = answer_part(row["text"].get_ref<const std::string&>());
    const auto found = part ? extract_boxed(*part) : std::nullopt;
    ASSERT_EQ(found.has_value(), !row["expect"].is_null());
    EXPECT_EQ(found.value_or(""), row["expect"].is_null() ? "" : row["expect"].get<std::string>());
  }
}

TEST(EvalExtract, FindsEveryChoiceOfTheTable) {
  const auto same = [](const nlohmann::json& expect, std::optional<char> found) {
    return expect.is_null() ? !found : found && expect.get<std::string>() == std::string(1, *found);
  };
  for (const auto& row : cases("choice_cases", 20)) {
    SCOPED_TRACE(row.dump());
    const auto part = answer_part(row["text"].get_ref<const std::string&>());
    const auto found = part ? extract_choice(*part, row["options"].get<int>()) : std::nullopt;
    EXPECT_TRUE(same(row["expect"], found)) << found.value_or('-');
    const auto aa = part ? extract_choice_aa_v2(*part) : std::nullopt;
    EXPECT_TRUE(same(row["expect_aa_v2"], aa)) << aa.value_or('-');
  }
}

TEST(EvalExtract, TakesTheLastWholeBlockOfCode) {
  const std::string two =
      "a\n```python\nx = 1\n```\nb\n```\nx = 2\n```\n```cpp\nint x;\n```\n```py\nx =";
  EXPECT_EQ(extract_code(two), "x = 2\n");
  EXPECT_EQ(extract_code(two, true), "x = 1\n");
  EXPECT_FALSE(extract_code("no code"));
  EXPECT_FALSE(extract_code("```python\nnever closed"));
}

TEST(EvalExtract, ReasoningOpenedByThePromptHidesItsText) {
  EXPECT_FALSE(answer_part("so \\boxed{3}", true));
  EXPECT_EQ(answer_part("so \\boxed{3}</think>four", true), "four");
  EXPECT_EQ(answer_part("four"), "four");
}

TEST(EvalMath, DecidesEveryPairOfTheTable) {
  for (const auto& row : cases("math_equivalence", 36)) {
    SCOPED_TRACE(row.dump());
    const MathVerdict verdict =
        math_equal(row["gold"].get<std::string>(), row["answer"].get<std::string>());
    EXPECT_EQ(verdict, row["equal"].get<bool>() ? MathVerdict::kEqual : MathVerdict::kUnequal);
  }
}

TEST(EvalMath, DecidesWhatTheTableLeavesOpen) {
  const auto equal = [](std::string_view gold, std::string_view answer) {
    return math_equal(gold, answer) == MathVerdict::kEqual;
  };
  EXPECT_TRUE(equal("2", "\\frac{4}{2}"));
  EXPECT_TRUE(equal("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"));
  EXPECT_TRUE(equal("x^2-1", "(x-1)(x+1)"));
  EXPECT_TRUE(equal("5!", "120"));
  EXPECT_TRUE(equal("\\log_2 8", "3"));
  EXPECT_TRUE(equal("\\sin^2 x + \\cos^2 x", "1"));
  EXPECT_TRUE(equal("|{-3}|", "3"));
  EXPECT_TRUE(equal("\\binom{5}{2}", "10"));
  EXPECT_TRUE(equal("2^{100}", "1267650600228229401496703205376"));
  EXPECT_TRUE(equal("12 \\text{ cm}^2", "12"));
  EXPECT_TRUE(equal("x=5", "5"));
  EXPECT_TRUE(equal("1,234", "1234"));
  EXPECT_TRUE(equal("sqrt(8)", "2\\sqrt 2"));
  // What Math-Verify and the construction of tools/eval_pairs.py hold to be equal too.
  EXPECT_TRUE(equal("-259", "\\text{-259}"));
  EXPECT_TRUE(equal("\\text{-259}", "-259"));
  EXPECT_TRUE(equal("731", "\\mathbf{731}"));
  EXPECT_TRUE(equal("5:55", "5{:}55"));
  EXPECT_TRUE(equal("\\text{June } 9", "June 9"));
  EXPECT_TRUE(equal("4, 26", "26 \\text{ and } 4"));
  EXPECT_TRUE(equal("1, 2, 3", "1, 2, \\text{ and } 3"));
  EXPECT_TRUE(equal("x > -5", "-5 < x"));
  EXPECT_TRUE(equal("(-5, \\infty)", "x > -5"));
  EXPECT_TRUE(equal("[8,28)", "8 \\leq x \\lt 28"));
  EXPECT_TRUE(equal("28 > x \\ge 8", "[8,28)"));
  EXPECT_FALSE(equal("x > 3", "x \\ge 3"));
  EXPECT_FALSE(equal("x > 3", "3"));
  EXPECT_FALSE(equal("x > 3", "x < 3"));
  EXPECT_FALSE(equal("\\text{-259}", "259"));
  EXPECT_FALSE(equal("\\text{June } 9", "June 19"));
  EXPECT_FALSE(equal("2^{100}", "2^{100}+1"));
  EXPECT_FALSE(equal("\\frac{1}{3}", "0.3333333333333333"));
  EXPECT_FALSE(equal("-3", "3"));
  EXPECT_FALSE(equal("(1,2)", "[1,2]"));
  EXPECT_FALSE(equal("2x+3", "2x+4"));
  EXPECT_FALSE(
      equal("\\begin{pmatrix}1 & 2\\end{pmatrix}", "\\begin{pmatrix}1 \\\\ 2\\end{pmatrix}"));
  EXPECT_EQ(math_equal("5", "\\oint"), MathVerdict::kUndecided);
  EXPECT_EQ(math_equal("5", std::string(100'000, '(')), MathVerdict::kUndecided);
  EXPECT_EQ(math_equal("5", std::string(3'000, '(')), MathVerdict::kUndecided);
  EXPECT_EQ(math_equal("5", "9^{9^{9^{9^{9}}}}"), MathVerdict::kUndecided);
  EXPECT_EQ(math_equal("5", ""), MathVerdict::kUnequal);
}

}  // namespace
}  // namespace nibble
