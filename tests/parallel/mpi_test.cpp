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

#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string mpi_text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// mpirun in the background, its output in two files.
class MpiJob {
 public:
  explicit MpiJob(const std::vector<std::string>& arguments, const std::string& input = {}) {
    std::vector<std::string> all = {
        "mpirun",   "--oversubscribe", "--bind-to",          "none", "--mca", "btl",
        "self,tcp", "--mca",           "btl_tcp_if_include", "lo"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string in = folder_ / "in";
    std::ofstream(in) << input;
    const std::string out = folder_ / "out";
    const std::string err = folder_ / "err";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
      ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
      ::dup2(::open(in.c_str(), O_RDONLY), STDIN_FILENO);
      ::dup2(::open(out.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), STDOUT_FILENO);
      ::dup2(::open(err.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), STDERR_FILENO);
      ::execvp("mpirun", argv.data());
      ::_exit(127);
    }
  }
  MpiJob(const MpiJob&) = delete;
  MpiJob& operator=(const MpiJob&) = delete;
  ~MpiJob() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  // The exit code; nothing when it still runs after `seconds`.
  std::optional<int> wait(double seconds) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return std::nullopt;
  }

  std::string out() const { return mpi_text_of(folder_ / "out"); }
  std::string err() const { return mpi_text_of(folder_ / "err"); }

  // The process that is this rank, or 0.
  pid_t process_of(int rank) const {
    const std::string wanted = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename().string();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      std::istringstream stat(mpi_text_of(entry.path() / "stat"));
      std::string pid;
      std::string program;
      std::string state;
      pid_t parent = 0;
      stat >> pid >> program >> state >> parent;
      if (parent != pid_ || program != "(nibble)") continue;
      if (mpi_text_of(entry.path() / "environ").find(wanted + '\0') != std::string::npos) {
        return static_cast<pid_t>(std::stoi(name));
      }
    }
    return 0;
  }

 private:
  TemporaryFolder folder_;
  pid_t pid_ = -1;
};

std::vector<std::string> mpi_command(int ranks, const fs::path& model,
                                     const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"-n", std::to_string(ranks)};
  arguments.insert(arguments.end(), {NIBBLE_PROGRAM, "run", model.string(), "--backend", "cpu",
                                     "--threads", "1", "-t", "0", "-q"});
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

class Mpi : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v mpirun >/dev/null") != 0) {
      GTEST_SKIP() << "no mpirun here (package openmpi-bin)";
    }
    if (!fs::exists(fs::path(NIBBLE_PROGRAM).parent_path() / "libnibble_mpi.so")) {
      GTEST_SKIP() << "built without MPI (package libopenmpi-dev)";
    }
  }
};

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
