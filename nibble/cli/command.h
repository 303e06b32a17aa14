// The subcommands of the program: one file each, registered in main.cpp.
#pragma once

namespace CLI {
class App;
}

namespace nibble {

// Each adds its subcommand with options and help to `app`; when it was chosen, its callback runs it
// and stores the process's exit code: 0, or as exit_code() maps an Error.
void add_bench_command(CLI::App& app, int* exit_code);
void add_eval_command(CLI::App& app, int* exit_code);
void add_convert_command(CLI::App& app, int* exit_code);
void add_inspect_command(CLI::App& app, int* exit_code);
void add_pack_command(CLI::App& app, int* exit_code);
void add_plan_command(CLI::App& app, int* exit_code);
void add_quantize_command(CLI::App& app, int* exit_code);
void add_run_command(CLI::App& app, int* exit_code);
void add_serve_command(CLI::App& app, int* exit_code);
void add_tokenize_command(CLI::App& app, int* exit_code);
void add_trace_command(CLI::App& app, int* exit_code);
void add_tune_command(CLI::App& app, int* exit_code);

}  // namespace nibble
