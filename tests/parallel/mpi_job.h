// The program under mpirun, for tests.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/base/temporary_folder.h"

namespace nibble::testing {

inline std::string mpi_text_of(const std::filesystem::path& path) {
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
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
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

class Mpi : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v mpirun >/dev/null") != 0) {
      GTEST_SKIP() << "no mpirun here (package openmpi-bin)";
    }
    if (!std::filesystem::exists(std::filesystem::path(NIBBLE_PROGRAM).parent_path() /
                                 "libnibble_mpi.so")) {
      GTEST_SKIP() << "built without MPI (package libopenmpi-dev)";
    }
  }
};

}  // namespace nibble::testing
