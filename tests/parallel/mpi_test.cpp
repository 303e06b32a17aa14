// Ranks as processes: the program under mpirun.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

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
  explicit MpiJob(const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {
        "mpirun",   "--oversubscribe", "--bind-to",          "none", "--mca", "btl",
        "self,tcp", "--mca",           "btl_tcp_if_include", "lo"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string out = folder_ / "out";
    const std::string err = folder_ / "err";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
      ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
      ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
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

}  // namespace
}  // namespace nibble
