// Python programs of strangers, run where they can do no harm: bubblewrap's namespaces with nothing
// of this machine but a read-only /usr, no network, limits on memory, time, processes and output.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

enum class SandboxLevel {
  kBubblewrap,
  kNone,  // limits alone: the program may read and write what this user may
};
std::string_view sandbox_level_name(SandboxLevel level);  // "bwrap", "none"

struct SandboxLimits {
  SandboxLevel level = SandboxLevel::kBubblewrap;
  double seconds = 6;                        // of the clock; then everything inside is killed
  int64_t memory_bytes = int64_t{4} << 30;   // address space of a process, and memory of them all
  int64_t output_bytes = int64_t{64} << 20;  // of standard output
  int64_t error_bytes = int64_t{64} << 10;   // of standard error; the rest is thrown away
  int64_t file_bytes = int64_t{64} << 20;    // of one file, and of /tmp
  int64_t processes = 64;
  std::string data_file = {};  // readable inside, at the path in the variable NIBBLE_DATA
};

enum class SandboxOutcome { kExited, kTimeout, kOutputLimit, kFailed };

struct SandboxResult {
  SandboxOutcome outcome = SandboxOutcome::kFailed;
  int exit_code = 0;  // of kExited; 128 + the signal when one ended it
  std::string out;
  std::string err;
  std::string result;  // what was written to descriptor 3
  double seconds = 0;
};

// Runs /usr/bin/python3 on `program` with `input` as its standard input. Descriptor 3 inside is a
// pipe for results. May be called from several threads. Errors: kUnsupported when bubblewrap is
// missing or cannot make namespaces here.
Result<SandboxResult> run_python(std::string_view program, std::string_view input,
                                 const SandboxLimits& limits);

// Runs a program that tries to open a connection, to read the home folder, to write outside /tmp,
// to fork 200 times, to make namespaces and to see this process. Errors: kUnsupported naming what
// is missing or what was possible; then no program of a stranger may run here.
Status check_sandbox(SandboxLevel level = SandboxLevel::kBubblewrap);

}  // namespace nibble
