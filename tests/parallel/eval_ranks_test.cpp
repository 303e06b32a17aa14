// nibble eval over ranks, as threads and under mpirun: the answers of one rank.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"
#include "tests/parallel/mpi_job.h"

namespace nibble {
namespace {

using testing::Mpi;
using testing::MpiJob;
using testing::TemporaryFolder;

std::vector<std::string> eval_command(const std::string& out,
                                      const std::vector<std::string>& options) {
  const std::string source = NIBBLE_SOURCE_DIR;
  std::vector<std::string> command = {"eval",
                                      "run",
                                      "--model",
                                      source + "/models/demo",
                                      "--task",
                                      "math-500=" + source + "/models/suites/math-500.jsonl",
                                      "--task",
                                      "mmlu-pro=" + source + "/models/suites/mmlu-pro.jsonl",
                                      "--prompt-style",
                                      "demo",
                                      "--allow-count",
                                      "--limit",
                                      "4",
                                      "--k",
                                      "1",
                                      "--max-tokens",
                                      "48",
                                      "--temperature",
                                      "0",
                                      "--concurrency",
                                      "4",
                                      "--progress",
                                      "none",
                                      "--backend",
                                      "cpu",
                                      "--out",
                                      out};
  command.insert(command.end(), options.begin(), options.end());
  return command;
}

using Answer = std::tuple<std::string, std::string, int64_t>;  // reasoning, text, tokens

std::map<std::string, Answer> answers_in(const std::string& folder) {
  std::map<std::string, Answer> answers;
  std::ifstream file(folder + "/samples.jsonl");
  for (std::string line; std::getline(file, line);) {
    const auto sample = nlohmann::json::parse(line);
    EXPECT_TRUE(sample.at("error").is_null()) << line;
    answers[sample.at("task").get<std::string>() + " " + sample.at("id").get<std::string>()] = {
        sample.at("reasoning"), sample.at("text"), sample.at("completion_tokens")};
  }
  return answers;
}

std::map<std::string, Answer> answers_with(const std::string& folder,
                                           const std::vector<std::string>& options) {
  const testing::ProgramRun run = testing::run_nibble(eval_command(folder, options));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return answers_in(folder);
}

TEST(EvalOverRanks, ThreadsGiveTheAnswersOfOneRank) {
  const TemporaryFolder folder;
  const auto want = answers_with(folder / "one", {"--threads", "1"});
  EXPECT_EQ(want.size(), 8U);
  EXPECT_EQ(answers_with(folder / "tp", {"--threads", "2", "--tp-size", "2"}), want);
  EXPECT_EQ(answers_with(folder / "dp", {"--threads", "2", "--tp-size", "2",
                                         "--enable-attention-dp", "--num-drafts", "2"}),
            want);
}

// Rank 0 asks, writes and scores; the other one serves it and ends with it.
TEST_F(Mpi, AnEvaluationGivesTheAnswersOfOneRank) {
  const TemporaryFolder folder;
  const auto want = answers_with(folder / "one", {"--threads", "1"});
  std::vector<std::string> command = {"-n", "2", NIBBLE_PROGRAM};
  for (const std::string& part : eval_command(folder / "mpi", {"--threads", "1"})) {
    command.push_back(part);
  }
  MpiJob job(command);
  ASSERT_EQ(job.wait(120), 0) << job.err();
  EXPECT_EQ(answers_in(folder / "mpi"), want);
  EXPECT_TRUE(std::filesystem::exists(folder / "mpi/report.json"));
  // Again into the same folder: nothing is left to ask, and the ranks end all the same.
  MpiJob again(command);
  ASSERT_EQ(again.wait(120), 0) << again.err();
  // Refused before there is a model: both ranks end.
  command.back() = "0";
  command.emplace_back("--num-drafts");
  command.emplace_back("99");
  MpiJob refused(command);
  const auto code = refused.wait(60);
  ASSERT_TRUE(code.has_value()) << "still running";
  EXPECT_NE(*code, 0);
}

}  // namespace
}  // namespace nibble
