// Runs the built program and keeps what it prints.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/base/check.h"

namespace nibble::testing {

struct ProgramRun {
  int exit_code = -1;  // 128 + the signal when one ended it
  std::string out;
  std::string err;
};

// Runs `nibble arguments...` with `input` as standard input and `environment` added to this
// process's. Files carry the three streams, so nothing can block.
inline ProgramRun run_nibble(
    const std::vector<std::string>& arguments, std::string_view input = "",
    const std::vector<std::pair<std::string, std::string>>& environment = {}) {
  std::string folder = (std::filesystem::temp_directory_path() / "nibble-cli-XXXXXX").string();
  NIBBLE_CHECK(::mkdtemp(folder.data()) != nullptr);
  std::ofstream(folder + "/in", std::ios::binary) << input;
  const pid_t child = ::fork();
  NIBBLE_CHECK(child >= 0);
  if (child == 0) {
    const int in = ::open((folder + "/in").c_str(), O_RDONLY);
    const int out = ::open((folder + "/out").c_str(), O_WRONLY | O_CREAT, 0600);
    const int err = ::open((folder + "/err").c_str(), O_WRONLY | O_CREAT, 0600);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(err, 2);
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv = {const_cast<char*>("nibble")};
    for (const std::string& argument : arguments) {
      argv.push_back(const_cast<char*>(argument.c_str()));
    }
    argv.push_back(nullptr);
    ::execv(NIBBLE_PROGRAM, argv.data());
    ::_exit(127);
  }
  int status = 0;
  NIBBLE_CHECK(::waitpid(child, &status, 0) == child);
  const auto slurp = [&](const char* name) {
    std::ifstream file(folder + name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  ProgramRun run;
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  run.out = slurp("/out");
  run.err = slurp("/err");
  std::filesystem::remove_all(folder);
  return run;
}

}  // namespace nibble::testing
