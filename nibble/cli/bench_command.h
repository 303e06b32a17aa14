// The subcommands of nibble bench.
#pragma once

namespace CLI {
class App;
}

namespace nibble {

void add_bench_offline_command(CLI::App& bench, int* exit_code);
void add_bench_serve_command(CLI::App& bench, int* exit_code);

}  // namespace nibble
