// Prompts, shuffling, statistics of many samples, reports against published values, fidelity.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "nibble/eval/extract.h"
#include "nibble/eval/report.h"
#include "nibble/eval/scicode.h"
#include "nibble/eval/shuffle.h"
#include "nibble/eval/task.h"
#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::run_nibble;
using testing::TemporaryFolder;

const std::string kSuiteFolder = NIBBLE_SOURCE_DIR "/models/suites";

// The first eight draws that the specification gives.
TEST(EvalShuffle, FollowsSimpleEvals) {
  const std::vector<std::vector<size_t>> expected = {{3, 1, 0, 2}, {3, 1, 2, 0}, {2, 3, 0, 1},
                                                     {2, 0, 3, 1}, {1, 3, 0, 2}, {2, 1, 0, 3},
                                                     {3, 1, 0, 2}, {3, 2, 1, 0}};
  PythonShuffle stream;
  for (const auto& order : expected) EXPECT_EQ(stream.next(), order);
}

std::vector<EvalItem> gpqa(Shuffle shuffle, int sample, int64_t seed) {
  LoadOptions options;
  options.prompt_style = "demo";
  options.shuffle = shuffle;
  options.sample = sample;
  options.shuffle_seed = seed;
  auto items =
      load_items(*find_task("gpqa-diamond"), {kSuiteFolder + "/gpqa-diamond.csv"}, options);
  EXPECT_TRUE(items);
  return items ? *std::move(items) : std::vector<EvalItem>{};
}

TEST(EvalShuffle, GoesThroughTheRoundsOfAFile) {
  const auto first = gpqa(Shuffle::kOpenAi, 0, 0), second = gpqa(Shuffle::kOpenAi, 1, 0);
  ASSERT_EQ(first.size(), 100u);
  EXPECT_EQ(first[0].permutation, "3102");
  EXPECT_EQ(first[0].gold, "C");  // the right option is the file's first
  EXPECT_EQ(first[1].permutation, "3120");
  PythonShuffle stream;
  for (int i = 0; i < 100; ++i) (void)stream.next();
  std::string order;
  for (const size_t one : stream.next()) order += std::to_string(one);
  EXPECT_EQ(second[0].permutation, order);
  // Our own: another one for each sample and --shuffle-seed, and all letters occur.
  const auto a = gpqa(Shuffle::kItem, 0, 0), b = gpqa(Shuffle::kItem, 1, 0);
  const auto c = gpqa(Shuffle::kItem, 0, 1);
  int same_b = 0, same_c = 0;
  std::map<std::string, int> letters;
  for (size_t i = 0; i < a.size(); ++i) {
    same_b += a[i].permutation == b[i].permutation ? 1 : 0;
    same_c += a[i].permutation == c[i].permutation ? 1 : 0;
    ++letters[a[i].gold];
  }
  EXPECT_LT(same_b, 20);
  EXPECT_LT(same_c, 20);
  EXPECT_EQ(letters.size(), 4u);
  EXPECT_EQ(gpqa(Shuffle::kNone, 3, 5)[9].gold, "A");
}

Task mmlu() { return *find_task("mmlu_pro"); }

TEST(EvalPrompts, AreThoseOfEachHarness) {
  const TemporaryFolder folder;
  const nlohmann::json row = {
      {"question_id", 1},  {"question", "Which?"}, {"options", {"x", "y", "z"}}, {"answer", "B"},
      {"answer_index", 1}, {"category", "law"},    {"cot_content", ""},          {"src", ""}};
  nlohmann::json example = row;
  example["cot_content"] = "A: Let's think step by step. It is y. The answer is (B).";
  std::ofstream(folder / "test.jsonl") << row << "\n";
  std::ofstream(folder / "val.jsonl") << example << "\n";
  LoadOptions options;
  options.allow_count = true;
  const auto prompt = [&](const std::string& style) {
    options.prompt_style = style;
    const auto items = load_items(mmlu(), {folder / "test.jsonl"}, options);
    return items ? (*items)[0].prompt : items.error().message;
  };
  EXPECT_THAT(prompt("aa"),
              HasSubstr("'Answer: A/B/C' (e.g. 'Answer: A').\n\nWhich?\n\nA) x\nB) y\nC) z"));
  EXPECT_TRUE(prompt("aa-ten").ends_with(
      "C) z\nD) None\nE) None\nF) None\nG) None\nH) None\nI) None\nJ) None"));
  EXPECT_THAT(prompt("lm-eval"), HasSubstr("--examples"));
  options.examples = folder / "val.jsonl";
  // Worked by hand from the harness's templates.
  EXPECT_EQ(
      prompt("lm-eval"),
      "The following are multiple choice questions (with answers) about law. Think step by "
      "step and then finish your answer with \"the answer is (X)\" where X is the correct "
      "letter choice.\nQuestion:\nWhich?\nOptions:\nA. x\nB. y\nC. z\nAnswer: Let's think step "
      "by step. It is y. The answer is (B).\n\nQuestion:\nWhich?\nOptions:\nA. x\nB. y\nC. z\n"
      "Answer: Let's think step by step.");
  EXPECT_EQ(extract_choice_lm_eval("So the answer is (C). Or the answer is D."), 'C');
  EXPECT_EQ(extract_choice_lm_eval("the answer is K"), std::nullopt);
  options.allow_count = false;
  EXPECT_THAT(prompt("aa"), HasSubstr("1 rows, but the data set has 12032"));
}

TEST(EvalPrompts, TakePartsOfASuite) {
  LoadOptions options;
  options.prompt_style = "demo";
  const auto ids = [&](const char* task, const char* file) {
    std::vector<std::string> all;
    const auto items = load_items(*find_task(task), {kSuiteFolder + file}, options);
    EXPECT_TRUE(items);
    if (items) {
      for (const EvalItem& item : *items) all.push_back(item.id);
    }
    return all;
  };
  options.limit = 5;
  const auto first = ids("math-500", "/math-500.jsonl");
  options.subset_seed = 3;
  const auto drawn = ids("math-500", "/math-500.jsonl");
  EXPECT_EQ(drawn.size(), 5u);
  EXPECT_NE(drawn, first);
  EXPECT_EQ(drawn, ids("math-500", "/math-500.jsonl"));
  options = {};
  options.prompt_style = "demo";
  options.only = {drawn[1]};
  EXPECT_EQ(ids("math-500", "/math-500.jsonl"), options.only);
  options.only.clear();
  options.after = "2024-12-01";
  options.with_tests = false;
  const auto late = ids("livecodebench", "/livecodebench.jsonl");
  EXPECT_GT(late.size(), 0u);
  EXPECT_LT(late.size(), 60u);
}

TEST(EvalSciCode, BuildsOnEarlierSteps) {
  EXPECT_EQ(name_in_header("def f_1(x):\n  '''doc'''"), "f_1");
  EXPECT_EQ(name_in_header("import a\nclass Wave(Base):"), "Wave");
  EXPECT_TRUE(is_given_step("62.1"));
  EXPECT_FALSE(is_given_step("62.2"));
  EvalItem item;
  item.prompt = "Steps:\n{problem_steps_str}\nNext:\n{next_step_str}\nWith {dependencies}";
  item.chain = ChainStep{"second", "def g():\n\nreturn x", "g", "", "import numpy"};
  // What an answer holds is not taken for a place of the template.
  EXPECT_EQ(chain_prompt(item, {{"first", "def f(): {dependencies}"}}),
            "Steps:\nfirst\n\ndef f(): {dependencies}\nNext:\nsecond\n\ndef g():\n\nreturn x\nWith "
            "import numpy");
  if (!check_sandbox()) GTEST_SKIP() << "no sandbox";
  const auto found = definition_in("import os\nprint(1)\ndef f(a):\n  return a  # x\ndef g(): pass",
                                   "f", SandboxLevel::kBubblewrap);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(*found, "def f(a):\n    return a");
  EXPECT_EQ(*definition_in("def f(:", "f", SandboxLevel::kBubblewrap), "def f(:");
}

Score score(const std::string& id, int sample, const std::string& extracted, bool right) {
  Score s;
  s.task = "t";
  s.id = s.cluster = id;
  s.sample = sample;
  s.extracted = extracted;
  s.gold = "4";
  s.extractor = "boxed-v1";
  s.outcome = right ? "correct" : "wrong";
  return s;
}

TEST(EvalReport, CountsMajoritiesAndPasses) {
  // Question a: two of three right, in two forms. b: one right, two agree on a wrong one.
  const RunReport run =
      make_report("r", {score("a", 0, "4", true), score("a", 1, "5", false),
                        score("a", 2, "\\frac{8}{2}", true), score("b", 0, "5", false),
                        score("b", 1, "4", true), score("b", 2, "5", false)});
  ASSERT_EQ(run.tasks.size(), 1u);
  EXPECT_DOUBLE_EQ(run.tasks[0].score, 0.5);
  EXPECT_DOUBLE_EQ(run.tasks[0].majority_at_k, 0.5);
  EXPECT_DOUBLE_EQ(run.tasks[0].pass_at_k, 1);
}

TEST(EvalReport, ComparesWithPublishedValues) {
  const auto run = run_nibble(
      {"eval", "report", "--baseline-published", kSuiteFolder + "/published-nvfp4-card.json"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  for (const char* kept : {"99.06", "98.77", "99.09", "100.25", "100.10", "102.58"}) {
    EXPECT_THAT(run.out, HasSubstr(kept));
  }
  PublishedTable table;
  table.rows.push_back({"base", {{"t", 50}}, {{"t", 1}}});
  const RunReport mine = make_report("r", {score("a", 0, "4", true), score("b", 0, "5", false)});
  const auto compared = compare_published(mine, table, 98);
  ASSERT_TRUE(compared);
  EXPECT_FALSE((*compared)[0].is_paired);
  EXPECT_NEAR((*compared)[0].comparison.retention, 100, 1e-9);
  // SE of two values 0 and 1: 0.5; of 50 rounded to ones: 0.01 / sqrt(12).
  EXPECT_NEAR((*compared)[0].comparison.retention_se,
              100 * std::hypot(1.0, 0.01 / std::sqrt(12) / 0.5), 1e-6);
  EXPECT_FALSE(parse_published("{}", "x"));
}

TEST(EvalReport, NamesWhatIsNotComparable) {
  const TemporaryFolder folder;
  const auto run = [&](const std::string& name, const std::string& tokens) {
    const auto result =
        run_nibble({"eval", "run", "--task", "math-500=" + kSuiteFolder + "/math-500.jsonl",
                    "--prompt-style", "demo", "--limit", "2", "--k", "1", "--temperature", "0",
                    "--max-tokens", tokens, "--out", (folder / name).string()});
    EXPECT_EQ(result.exit_code, 0) << result.err;
  };
  run("a", "100");
  run("b", "101");
  const std::string a = (folder / "a").string(), b = (folder / "b").string();
  const auto report = run_nibble({"eval", "report", a, b, "--html", (folder / "r.html").string()});
  EXPECT_EQ(report.exit_code, 4);
  EXPECT_THAT(report.out, HasSubstr("not comparable: max_tokens: 100 and 101"));
  EXPECT_TRUE(std::filesystem::file_size(folder / "r.html") > 5000);
  EXPECT_EQ(run_nibble({"eval", "report", a, b, "--force"}).exit_code, 0);
  EXPECT_THAT(run_nibble({"eval", "score", a, "--sandbox", "bwrap"}).out, HasSubstr("math-500"));
}

TEST(EvalFidelity, OfAModelWithItselfIsNothing) {
  const TemporaryFolder folder;
  const std::string base = (folder / "base.kld").string(),
                    text = NIBBLE_SOURCE_DIR "/tests/golden/perplexity.txt";
  for (const char* top_k : {"16", "0"}) {
    const auto made = run_nibble({"eval", "fidelity", "kld-base", "--text", text, "--context",
                                  "128", "--chunks", "3", "--top-k", top_k, "--out", base});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const auto run = run_nibble({"eval", "fidelity", "kld", "--base", base, "--max-kld", "0",
                                 "--min-top1", "100", "--json", (folder / "d.json").string()});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    std::ifstream file(folder / "d.json");
    const auto json = nlohmann::json::parse(file);
    EXPECT_EQ(json["kl"]["max"], 0.0);
    EXPECT_EQ(json["same_top1"], 1.0);
    EXPECT_EQ(json["positions"], 3 * 63);
    const auto ppl = run_nibble({"eval", "fidelity", "ppl", "--text", text, "--context", "128",
                                 "--chunks", "3", "--json", (folder / "p.json").string()});
    EXPECT_EQ(ppl.exit_code, 0) << ppl.err;
    std::ifstream other(folder / "p.json");
    EXPECT_EQ(nlohmann::json::parse(other)["perplexity"], json["reference"]["perplexity"]);
  }
  // A file that was cut off is refused.
  std::filesystem::resize_file(base, std::filesystem::file_size(base) - 4);
  const auto cut = run_nibble({"eval", "fidelity", "kld", "--base", base});
  EXPECT_EQ(cut.exit_code, 4);
  EXPECT_THAT(cut.err, HasSubstr("cut off"));
}

TEST(EvalFidelity, ForcesContinuations) {
  const TemporaryFolder folder;
  const std::string pairs = (folder / "pairs.jsonl").string();
  std::ofstream(pairs) << R"({"id": "a", "prompt": "What is 2 + 3?", "continuation": "hello"})"
                       << "\n";
  const std::string json = (folder / "n.json").string();
  const auto run = run_nibble({"eval", "fidelity", "nll", "--pairs", pairs, "--json", json});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("1 continuations"));
  const auto report = run_nibble({"eval", "fidelity", "nll-report", json, json});
  EXPECT_EQ(report.exit_code, 0) << report.err;
  EXPECT_THAT(report.out, HasSubstr("equal in 1 of 1"));
}

}  // namespace
}  // namespace nibble
