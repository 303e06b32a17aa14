// nibble bench: what to measure is a subcommand of its own.
#include <CLI/CLI.hpp>

#include "nibble/cli/bench_command.h"
#include "nibble/cli/command.h"

namespace nibble {

void add_bench_command(CLI::App& app, int* exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "Measure the engine");
  bench->require_subcommand(1);
  add_bench_offline_command(*bench, exit_code);
  add_bench_serve_command(*bench, exit_code);
}

}  // namespace nibble
