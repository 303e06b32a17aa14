// The subcommands of nibble eval, and what they share.
#pragma once

#include <functional>
#include <string>

#include "nibble/base/result.h"

namespace CLI {
class App;
}

namespace nibble {

constexpr int kExitFailedSamples = 3;
constexpr int kExitMismatch = 4;
constexpr int kExitUnreachable = 5;
constexpr int kExitNotRetained = 6;

// Exit code of a command that gives one; what is corrupt (data, a manifest that differs) is 4.
int finish_eval(const Result<int>& result, const char* command);

void add_eval_run(CLI::App& eval, int* exit_code);
void add_eval_score(CLI::App& eval, int* exit_code);
void add_eval_report(CLI::App& eval, int* exit_code);
void add_eval_fidelity(CLI::App& eval, int* exit_code);
void add_eval_convert(CLI::App& eval, int* exit_code);
void add_eval_tasks(CLI::App& eval, int* exit_code);

}  // namespace nibble
