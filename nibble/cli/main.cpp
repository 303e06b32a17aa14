// nibble COMMAND ...: picks the subcommand, turns every kind of failure into one line on stderr and
// an exit code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <exception>
#include <new>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/log.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"

namespace nibble {
namespace {

void add_commands(CLI::App& app, int* exit_code) {
  add_run_command(app, exit_code);
  add_serve_command(app, exit_code);
  add_quantize_command(app, exit_code);
  add_convert_command(app, exit_code);
  add_pack_command(app, exit_code);
  add_trace_command(app, exit_code);
  add_tune_command(app, exit_code);
  add_plan_command(app, exit_code);
  add_inspect_command(app, exit_code);
  add_tokenize_command(app, exit_code);
  add_eval_command(app, exit_code);
  add_bench_command(app, exit_code);
}

void add_log_level_option(CLI::App& app) {
  const auto set_level = [](const std::string& name) {
    const auto level = parse_log_level(name);
    if (!level) throw CLI::ValidationError("--log-level", level.error().message);
    set_log_level(*level);
  };
  app.add_option_function<std::string>("--log-level", set_level,
                                       "error, warning, info, debug or trace on stderr [warning]")
      ->type_name("LEVEL");
  app.get_formatter()->column_width(34);
}

int usage_error(std::string message, std::string_view command) {
  return report_error(invalid_argument(std::move(message)).value(), command);
}

int run_program(int argc, char** argv) {
  CLI::App app("nibble runs DeepSeek-R1-class models in NVFP4.", "nibble");
  app.footer("nibble COMMAND --help explains a command.");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.get_formatter()->label("SUBCOMMAND", "COMMAND");
  app.require_subcommand(1);
  int code = 0;
  add_commands(app, &code);
  // --log-level may stand before the command or among its options.
  add_log_level_option(app);
  for (CLI::App* command : app.get_subcommands({})) {
    command->group("Commands");
    add_log_level_option(*command);
  }

  std::string command;
  if (argc < 2) {
    (void)std::fputs(app.help().c_str(), stderr);
    return 2;
  }
  std::vector<std::string> arguments(argv + 1, argv + argc);
  // Through a link of that name, the command line on the model's card works as it is.
  const std::string_view called(argv[0]);
  if (called.substr(called.rfind('/') + 1) == "trtllm-serve" && arguments.front() != "serve") {
    arguments.insert(arguments.begin(), "serve");
  }
  if (arguments.front() == "help") {
    arguments.erase(arguments.begin());
    arguments.emplace_back("--help");
  }
  auto checked = check_arguments(app, std::move(arguments), &command);
  if (!checked) return report_error(checked.error(), command);
  std::reverse(checked->begin(), checked->end());  // CLI11 takes them from the back
  try {
    app.parse(*std::move(checked));
  } catch (const CLI::CallForHelp&) {
    print(app.help());
    return 0;
  } catch (const CLI::CallForVersion& version) {
    print(fmt::format("{}\n", version.what()));
    return 0;
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> extra = app.remaining(true);
    return usage_error(fmt::format("unexpected argument '{}'", extra.empty() ? "" : extra.front()),
                       command);
  } catch (const CLI::RequiredError& error) {
    return usage_error(fmt::format("{}; nibble{}{} --help explains",
                                   command.empty() ? "a command is missing" : error.what(),
                                   command.empty() ? "" : " ", command),
                       command);
  } catch (const CLI::ParseError& error) {
    return usage_error(error.what(), command);
  }
  return code;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  // A reader that goes away (nibble inspect | head) shows as a failed write, see finish_output.
  (void)std::signal(SIGPIPE, SIG_IGN);
  nibble::install_interrupt_handlers();
  try {
    return nibble::finish_output(nibble::run_program(argc, argv));
  } catch (const std::bad_alloc&) {
    (void)std::fputs("nibble: out of memory\n", stderr);
  } catch (const std::exception& error) {
    (void)std::fprintf(stderr, "nibble: internal error: %s\n", error.what());
  }
  return 1;
}
