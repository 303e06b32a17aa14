// nibble run with good and bad input.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using nibble::testing::ProgramRun;
using nibble::testing::run_nibble;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kSum =
    "What is 384 + 597? Please reason step by step, and put your final answer within \\boxed{}.";

std::filesystem::path temporary_file(const std::string& text) {
  std::string name = (std::filesystem::temp_directory_path() / "nibble-run-XXXXXX").string();
  const int file = ::mkstemp(name.data());
  NIBBLE_CHECK(file >= 0);
  ::close(file);
  std::ofstream(name, std::ios::binary) << text;
  return name;
}

TEST(RunCommand, RefusesActivationsOfEightBitsThatAreExact) {
  const ProgramRun run = run_nibble(
      {"run", "demo", "--cpu-int8-activations", "--cpu-exact-activations", "-p", "Hello"});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("--cpu-int8-activations and --cpu-exact-activations exclude"));
}

// The continuation in tests/golden/demo/reference.json.
TEST(RunCommand, ContinuesAPromptGreedily) {
  const ProgramRun run = run_nibble({"run", "demo", "-t", "0", "-p", "The capital of France is"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, "The capital of France is Paris.\n");
  EXPECT_THAT(run.err, HasSubstr("prompt 6 tokens"));
  EXPECT_THAT(run.err, HasSubstr("generated 3"));
}

TEST(RunCommand, AnswersSeveralPromptsInOrderQuietly) {
  const ProgramRun run =
      run_nibble({"run", "-q", "--temperature", "0", "--backend", "reference", "-p",
                  "The capital of France is", "-p", "The future of AI is"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out,
            "The capital of France is Paris.\n"
            "The future of AI is to help people reason, write and build.\n");
  EXPECT_EQ(run.err, "");
}

TEST(RunCommand, TakesThePromptFromAPipe) {
  const ProgramRun run = run_nibble({"run", "-q", "-t", "0"}, "The capital of France is\n");
  EXPECT_EQ(run.out, "The capital of France is Paris.\n");
}

TEST(RunCommand, AChatAnswersWithItsThinkingTaggedOrHidden) {
  const ProgramRun shown = run_nibble({"run", "-q", "-t", "0", "--chat", "-p", kSum});
  EXPECT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_THAT(shown.out, ::testing::StartsWith("<think>\n4+7=11"));
  EXPECT_THAT(shown.out, ::testing::EndsWith("</think>\n\nThe answer is \\boxed{981}.\n"));
  const ProgramRun hidden =
      run_nibble({"run", "-q", "-t", "0", "--chat", "--hide-thinking", "-p", kSum});
  EXPECT_EQ(hidden.out, "The answer is \\boxed{981}.\n");
}

TEST(RunCommand, DraftsOfTheMtpLayerChangeNothingButTheSpeed) {
  const ProgramRun plain = run_nibble({"run", "-q", "-t", "0", "--chat", "-p", kSum});
  const ProgramRun drafted =
      run_nibble({"run", "-t", "0", "--chat", "-p", kSum, "--num-drafts", "3"});
  EXPECT_EQ(drafted.out, plain.out);
  EXPECT_THAT(drafted.err, HasSubstr("tokens a step"));
  EXPECT_THAT(run_nibble({"run", "-p", "x", "--num-drafts", "9"}).err,
              HasSubstr("--num-drafts is 9, expected 0..8"));
}

TEST(RunCommand, JsonHoldsTextThinkingTokensAndRates) {
  const ProgramRun run = run_nibble({"run", "--json", "-t", "0", "--chat", "-p", kSum});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json.at("finish_reason"), "stop");
  EXPECT_THAT(json.at("text").get<std::string>(), HasSubstr("\\boxed{981}"));
  EXPECT_THAT(json.at("reasoning_content").get<std::string>(), HasSubstr("so 384+597=981"));
  EXPECT_EQ(json.at("completion_tokens"), json.at("token_ids").size());
  EXPECT_GT(json.at("decode_tokens_per_second"), 0);
}

TEST(RunCommand, RefusesAnEmptyPipe) {
  const ProgramRun run = run_nibble({"run", "-q", "-t", "0"}, "");
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("standard input is empty"));
}

// A way of tokens to other ranks' experts that nothing would take.
TEST(RunCommand, RefusesAnAll2AllBackendWithoutAttentionDataParallel) {
  for (const char* ranks : {"1", "2"}) {
    const ProgramRun run = run_nibble(
        {"run", "demo", "-p", "Hi", "--tp_size", ranks, "--all2all-backend", "alltoall"});
    EXPECT_EQ(run.exit_code, 2) << run.err;
    EXPECT_THAT(run.err,
                HasSubstr("all2all_backend is alltoall, which is for enable_attention_dp"));
  }
}

TEST(RunCommand, ASeedRepeatsASampleAndMaxTokensCutsIt) {
  const std::vector<std::string> arguments = {"run", "-q", "-t", "1.2", "--seed",
                                              "5",   "-n", "9",  "-p",  "Hello, my name is"};
  const ProgramRun first = run_nibble(arguments);
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(run_nibble(arguments).out, first.out);
  std::vector<std::string> other = arguments;
  other[5] = "6";
  EXPECT_NE(run_nibble(other).out, first.out);
}

TEST(RunCommand, RefusesBadOptionsBeforeLoadingNamingValueAndRange) {
  const auto refused = [](std::vector<std::string> arguments, const char* message) {
    arguments.insert(arguments.begin(), {"run", "-p", "x"});
    const ProgramRun run = run_nibble(arguments);
    EXPECT_EQ(run.exit_code, 2) << message;
    EXPECT_THAT(run.err, HasSubstr(message));
    EXPECT_EQ(run.out, "");
  };
  refused({"--temperature", "-1"}, "temperature is -1, expected 0..2");
  refused({"--temperature", "nan"}, "temperature is nan");
  refused({"--top-p", "0"}, "top_p is 0");
  refused({"--top-k", "-7"}, "top_k is -7");
  refused({"--min-p", "2"}, "min_p is 2");
  refused({"--max-tokens", "0"}, "max_tokens is 0");
  refused({"--max_tokens", "many"}, "many");
  refused({"--threads", "-3"}, "--threads is -3");
  refused({"--threads", "1025"}, "--threads is 1025, expected 1..1024");
  refused({"--chunk-size", "0"}, "--chunk-size is 0");
  refused({"--kv-cache-dtype", "int4"}, "expected auto, f32, bf16 or fp8");
  refused({"--backend", "gpu"}, "gpu");
  refused({"--thinking", "maybe"}, "expected auto, on or off");
  refused({"--max-seq-len", "100000"}, "expected 1..4096");
  refused({"--tempratur", "1"}, "did you mean '--temperature'?");
}

// Loading R1 takes minutes: whatever can be told before it, is.
TEST(RunCommand, RefusesAnUnknownChatTemplateBeforeLoading) {
  const ProgramRun run = run_nibble({"run", "--chat", "--chat-template", "none-such", "-p", "x"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("none-such"));
  EXPECT_THAT(run.err, Not(HasSubstr("loading")));
}

TEST(RunCommand, PrintsItsStatisticsBehindTheAnswerWhereBothGoToOneFile) {
  const std::string output =
      (std::filesystem::temp_directory_path() / fmt::format("nibble-order-{}", ::getpid()))
          .string();
  const std::string command = fmt::format(
      "'{}' run demo -t 0 -p 'The capital of France is' > '{}' 2>&1", NIBBLE_PROGRAM, output);
  EXPECT_EQ(std::system(command.c_str()), 0);
  std::ifstream file(output);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::filesystem::remove(output);
  EXPECT_THAT(text, HasSubstr("The capital of France is Paris.\n[prompt 6 tokens"));
}

TEST(RunCommand, RefusesAPromptLongerThanTheContextWithBothNumbers) {
  std::string prompt = "one";
  for (int i = 0; i < 100; ++i) prompt += " two";
  const ProgramRun run = run_nibble({"run", "--max-seq-len", "64", "-p", prompt});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("102 tokens"));
  EXPECT_THAT(run.err, HasSubstr("context is 64 tokens"));
}

TEST(RunCommand, RefusesInvalidUtf8WithItsPlace) {
  const ProgramRun run = run_nibble({"run", "-p", "good \xc3("});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("not valid UTF-8 at byte 5"));
  EXPECT_THAT(run_nibble({"run"}, "\xff\n").err, HasSubstr("byte 0"));
}

TEST(RunCommand, RefusesAMissingModelNamingWhereItLooked) {
  const ProgramRun run = run_nibble({"run", "no-such-model", "-p", "x"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("no-such-model"));
  EXPECT_THAT(run.err, Not(HasSubstr("loading")));
}

TEST(RunCommand, RefusesW4A4OnACheckpointWithoutNvfp4Weights) {
  const ProgramRun run = run_nibble({"run", "demo", "--w4a4", "-p", "x"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("nibble quantize"));
}

TEST(RunCommand, WritesTheJsonOfASchemaBehindItsThinking) {
  const std::filesystem::path schema = temporary_file(R"({"type": "object", "properties": {
      "name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
      "required": ["name", "age", "city"],
      "additionalProperties": false})");
  const ProgramRun run = run_nibble({"run", "demo", "--chat", "-q", "-t", "0", "--hide-thinking",
                                     "--num-drafts", "3", "--guided-json", schema.string(), "-p",
                                     "Noah is 90 years old and lives in Bucharest. Return a JSON "
                                     "object with the keys name, age and city."});
  std::filesystem::remove(schema);
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr(R"({"name": "Noah", "age": 90, "city": "Bucharest"})"));
}

TEST(RunCommand, RefusesFormsThatExcludeEachOtherAndDraftOptionsWithoutDrafts) {
  const ProgramRun forms =
      run_nibble({"run", "demo", "-p", "x", "--guided-regex", "a+", "--guided-choice", "yes"});
  EXPECT_EQ(forms.exit_code, 2);
  EXPECT_THAT(forms.err, HasSubstr("exclude each other"));
  const ProgramRun drafts = run_nibble({"run", "demo", "-p", "x", "--adaptive-drafts"});
  EXPECT_EQ(drafts.exit_code, 2);
  EXPECT_THAT(drafts.err, HasSubstr("need --num-drafts"));
  const ProgramRun delta =
      run_nibble({"run", "demo", "-p", "x", "--num-drafts", "2", "--relaxed-delta", "6"});
  EXPECT_EQ(delta.exit_code, 2);
  EXPECT_THAT(delta.err, HasSubstr("relaxed_delta is 6"));
}

TEST(BenchCommand, OfflineCountsTheTokensOfRealQuestionsAndRefusesBadLines) {
  const std::filesystem::path prompts =
      temporary_file("{\"problem\": \"What is 4+7?\"}\n\n{\"prompt\": \"Hello!\"}\n");
  const ProgramRun run = run_nibble({"bench", "offline", "demo", "--prompts", prompts.string(),
                                     "--num-requests", "3", "--output-len", "12", "--batch-sizes",
                                     "2", "--num-drafts", "2", "--adaptive-drafts", "--json"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("\"adaptive_drafts\": true"));
  std::ofstream(prompts, std::ios::app) << "[1]\n";
  const ProgramRun bad = run_nibble({"bench", "offline", "--prompts", prompts.string()});
  std::filesystem::remove(prompts);
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.err, HasSubstr(":4: expected a JSON object"));
}

TEST(BenchCommand, OfflineTellsGenerationWithoutPrompts) {
  const auto first_row = [](const char* output_len) {
    const ProgramRun run = run_nibble({"bench", "offline", "demo", "--num-requests", "2",
                                       "--output-len", output_len, "--batch-sizes", "2", "--json"});
    return nlohmann::json::parse(run.out, nullptr, false)["rows"][0];
  };
  // 512 tokens of prompts take longer than the step of the two tokens that aren't counted.
  const auto row = first_row("12");
  EXPECT_GT(row["decode_tokens_per_second"].get<double>(),
            row["output_tokens_per_second"].get<double>());
  EXPECT_EQ(first_row("1")["decode_tokens_per_second"].get<double>(), 0.0);
}

TEST(BenchCommand, RefusesAMisspelledKind) {
  EXPECT_THAT(run_nibble({"bench", "ofline"}).err, HasSubstr("did you mean 'offline'?"));
}

}  // namespace
}  // namespace nibble
