// Ranks as processes: the program under mpirun.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/parallel/mpi_job.h"
#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::Mpi;
using testing::MpiJob;
using testing::TemporaryFolder;

std::vector<std::string> mpi_command(int ranks, const fs::path& model,
                                     const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"-n", std::to_string(ranks)};
  arguments.insert(arguments.end(), {NIBBLE_PROGRAM, "run", model.string(), "--backend", "cpu",
                                     "--threads", "1", "-t", "0", "-q"});
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

std::vector<int32_t> token_ids_of(const std::string& json) {
  return nlohmann::json::parse(json).at("token_ids").get<std::vector<int32_t>>();
}

TEST_F(Mpi, RanksGiveTheTokensOfOneRank) {
  const std::vector<std::string> prompt = {"--json", "-p", "What is 384 + 597?", "-n", "20"};
  struct Case {
    fs::path model;
    int ranks;
    std::vector<std::string> options;
  };
  for (const Case& c :
       {Case{testing::demo_checkpoint(), 2, {"--num-drafts", "2", "--chunk-size", "16"}},
        Case{testing::demo_checkpoint(),
             2,
             {"--enable-attention-dp", "--all2all-backend", "alltoall"}},
        Case{testing::nvfp4_demo(), 4, {"--ep-size", "2", "--w4a4"}}}) {
    SCOPED_TRACE(c.ranks);
    std::vector<std::string> options = prompt;
    if (c.ranks == 4) options.emplace_back("--w4a4");
    MpiJob one(mpi_command(1, c.model, options));
    ASSERT_EQ(one.wait(60), 0) << one.err();
    options = prompt;
    options.insert(options.end(), c.options.begin(), c.options.end());
    MpiJob many(mpi_command(c.ranks, c.model, options));
    ASSERT_EQ(many.wait(60), 0) << many.err();
    EXPECT_EQ(token_ids_of(many.out()), token_ids_of(one.out()));
  }
}

TEST_F(Mpi, AKilledRankEndsTheJobWithinSecondsByName) {
  MpiJob job(mpi_command(2, testing::demo_checkpoint(),
                         {"-p", "What is 384 + 597?", "-n", "3000", "--ignore-eos"}));
  for (int i = 0; i < 1500 && job.out().size() < 100; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ASSERT_GE(job.out().size(), 100U) << job.err();
  const pid_t victim = job.process_of(1);
  ASSERT_GT(victim, 0);
  ::kill(victim, SIGKILL);
  const auto code = job.wait(10);
  ASSERT_TRUE(code.has_value()) << "still running 10 s later";
  EXPECT_NE(*code, 0);
  // Rank 0 tells, unless mpirun, which sees it first, has ended it by then (and shows process 0).
  EXPECT_THAT(job.err(), AnyOf(HasSubstr("rank 1 (process " + std::to_string(victim)),
                               HasSubstr("process rank 1 with PID")));
}

TEST_F(Mpi, RanksWithDifferentCheckpointsDoNotBegin) {
  std::vector<std::string> arguments =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4"});
  arguments.emplace_back(":");
  const auto second = mpi_command(1, testing::nvfp4_demo(), {"-p", "a", "-n", "4"});
  arguments.insert(arguments.end(), second.begin(), second.end());
  MpiJob job(arguments);
  const auto code = job.wait(20);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_THAT(job.err(), HasSubstr("rank 1 has another checkpoint than rank 0"));
}

TEST_F(Mpi, RanksWithDifferentOptionsDoNotBegin) {
  std::vector<std::string> arguments =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4"});
  arguments.emplace_back(":");
  const auto second =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4", "--max-seq-len", "64"});
  arguments.insert(arguments.end(), second.begin(), second.end());
  MpiJob job(arguments);
  ASSERT_NE(job.wait(20).value_or(0), 0);
  EXPECT_THAT(job.err(), HasSubstr("rank 1 has another command line than rank 0"));
}

TEST_F(Mpi, AnotherTpSizeThanTheJobsIsRefused) {
  MpiJob job(mpi_command(2, testing::demo_checkpoint(), {"-p", "a", "--tp-size", "4"}));
  ASSERT_NE(job.wait(20).value_or(0), 0);
  EXPECT_THAT(job.err(), HasSubstr("tp_size is 4, and the MPI job has 2 ranks"));
}

// mpirun gives standard input to rank 0 alone.
TEST_F(Mpi, APromptOnStandardInputReachesAllRanks) {
  const std::vector<std::string> options = {"-n", "8", "--ignore-eos"};
  std::vector<std::string> with_prompt = options;
  with_prompt.insert(with_prompt.end(), {"-p", "What is 384 + 597?"});
  MpiJob given(mpi_command(1, testing::demo_checkpoint(), with_prompt));
  ASSERT_EQ(given.wait(60), 0) << given.err();
  MpiJob piped(mpi_command(2, testing::demo_checkpoint(), options), "What is 384 + 597?\n");
  ASSERT_EQ(piped.wait(60), 0) << piped.err();
  EXPECT_EQ(piped.out(), given.out());
  EXPECT_GT(piped.out().size(), 25U);
}

// Rank 0 alone sees what is wrong; the others, busy with loading, are let go.
TEST_F(Mpi, WhatRankZeroRefusesBeforeItLoadsEndsTheJob) {
  MpiJob job(mpi_command(2, testing::demo_checkpoint(), {"-n", "8"}), "");
  ASSERT_NE(job.wait(20).value_or(0), 0) << "still running";
  EXPECT_THAT(job.err(), HasSubstr("the prompt on standard input is empty"));
}

TEST_F(Mpi, AServerThatCannotListenEndsTheJob) {
  const int taken = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(taken, 1), 0);
  ASSERT_EQ(::getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  MpiJob job({"-n", "2", NIBBLE_PROGRAM, "serve", testing::demo_checkpoint().string(), "--backend",
              "cpu", "--host", "127.0.0.1", "--port", port, "--log_level", "info"});
  const auto code = job.wait(20);
  ::close(taken);
  ASSERT_TRUE(code.has_value()) << "still running";
  EXPECT_NE(*code, 0);
  EXPECT_THAT(job.err(), HasSubstr(port));
  // What is logged is the job's size, not what was typed.
  EXPECT_THAT(job.err(), HasSubstr(R"("tp_size":2,)"));
}

TEST_F(Mpi, AnotherTpSizeOnOneRankAloneIsNamed) {
  std::vector<std::string> arguments =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4"});
  arguments.emplace_back(":");
  const auto second =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4", "--tp-size", "4"});
  arguments.insert(arguments.end(), second.begin(), second.end());
  MpiJob job(arguments);
  ASSERT_NE(job.wait(20).value_or(0), 0) << "still running";
  EXPECT_THAT(job.err(), HasSubstr("rank 1 has another command line than rank 0: tp_size 4"));
}

// A program that differs in one byte behind all that is loaded: another build.
TEST_F(Mpi, RanksOfAnotherBuildDoNotBegin) {
  const TemporaryFolder folder;
  const fs::path other = fs::path(folder / "nibble");
  fs::copy_file(NIBBLE_PROGRAM, other);
  std::ofstream(other, std::ios::app) << 'x';
  fs::copy_file(fs::path(NIBBLE_PROGRAM).parent_path() / "libnibble_mpi.so",
                fs::path(folder / "libnibble_mpi.so"));
  std::vector<std::string> arguments =
      mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4"});
  arguments.emplace_back(":");
  auto second = mpi_command(1, testing::demo_checkpoint(), {"-p", "a", "-n", "4"});
  std::replace(second.begin(), second.end(), std::string(NIBBLE_PROGRAM), other.string());
  arguments.insert(arguments.end(), second.begin(), second.end());
  MpiJob job(arguments);
  ASSERT_NE(job.wait(20).value_or(0), 0) << "still running";
  EXPECT_THAT(job.err(), HasSubstr("rank 1 has another build of nibble than rank 0"));
}

// A rank that gets a fifth of its time: the others wait, and the answer is the same.
TEST_F(Mpi, AThrottledRankIsWaitedFor) {
  const std::vector<std::string> options = {"-p", "What is 384 + 597?", "-n", "60", "--ignore-eos"};
  MpiJob one(mpi_command(1, testing::demo_checkpoint(), options));
  ASSERT_EQ(one.wait(60), 0) << one.err();
  MpiJob job(mpi_command(2, testing::demo_checkpoint(), options));
  pid_t slow = 0;
  for (int i = 0; i < 500 && slow == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    slow = job.process_of(1);
  }
  ASSERT_GT(slow, 0) << job.err();
  int stops = 0;
  std::optional<int> code;
  for (int i = 0; i < 1200 && !code; ++i, ++stops) {
    ::kill(slow, SIGSTOP);
    code = job.wait(0.04);
    ::kill(slow, SIGCONT);
    if (!code) code = job.wait(0.01);
  }
  ASSERT_EQ(code, 0) << job.err();
  EXPECT_GE(stops, 3);
  EXPECT_EQ(job.out(), one.out());
}

TEST_F(Mpi, TrafficGoesOverNamedInterfacesOrNotAtAll) {
  const std::vector<std::string> options = {"-p", "a", "-n", "4", "--rank-interfaces"};
  std::vector<std::string> there = options;
  there.emplace_back("lo");
  MpiJob job(mpi_command(2, testing::demo_checkpoint(), there));
  EXPECT_EQ(job.wait(60), 0) << job.err();
  std::vector<std::string> missing = options;
  missing.emplace_back("nosuch0");
  MpiJob refused(mpi_command(2, testing::demo_checkpoint(), missing));
  EXPECT_EQ(refused.wait(20), 2) << refused.err();
  EXPECT_THAT(refused.err(), HasSubstr("there is no network interface 'nosuch0' here"));
}

}  // namespace
}  // namespace nibble
