#include "nibble/cli/cli_common.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

int g_output_error = 0;  // errno of the first failed write to standard output

std::string fold(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// "-h", "--help", "--no-values": every spelling of every option.
std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return names;
}

// "-", "-5" and "-.5" are values; "-x" and "--x" are options.
bool looks_like_option(const std::string& argument) {
  return argument.size() > 1 && argument[0] == '-' && argument[1] != '.' &&
         (argument[1] < '0' || argument[1] > '9');
}

}  // namespace

int report_error(const Error& error, std::string_view command) {
  const std::string line = fmt::format("nibble{}{}: {}\n", command.empty() ? "" : " ", command,
                                       printable(error.message));
  (void)std::fflush(stdout);
  (void)std::fputs(line.c_str(), stderr);
  return exit_code(error.code);
}

int report_status(const Status& status, std::string_view command) {
  return status ? 0 : report_error(status.error(), command);
}

std::string printable(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    size_t length = 1;
    if (byte >= 0xc2) {
      length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
      if (!is_valid_utf8(text.substr(i, length))) length = 0;
    } else if (byte >= 0x7f || (byte < 0x20 && byte != '\n')) {
      length = 0;
    }
    // U+0080..U+009F are control characters too.
    if (length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0) length = 0;
    if (length == 0) {
      out += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  return out;
}

void print(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() && g_output_error == 0) {
    g_output_error = errno == 0 ? EIO : errno;
  }
}

int finish_output(int code) {
  errno = 0;
  if (std::fflush(stdout) != 0 && g_output_error == 0) g_output_error = errno == 0 ? EIO : errno;
  if (g_output_error == 0) return code;
  if (g_output_error == EPIPE) return code == 0 ? 141 : code;
  const auto error = system_error("cannot write standard output", g_output_error);
  (void)report_error(error.value(), "");
  return 1;
}

Result<std::vector<std::string>> check_arguments(const CLI::App& app,
                                                 std::vector<std::string> arguments,
                                                 std::string* command) {
  const CLI::App* current = &app;
  std::vector<std::string> names = option_names(app);
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string& argument = arguments[i];
    if (argument == "--") break;  // what follows is positional
    if (!looks_like_option(argument)) {
      const std::vector<std::string> commands = command_names(*current);
      if (commands.empty()) continue;  // a positional argument of the command
      const std::string path = command->empty() ? "" : *command + " ";
      if (std::find(commands.begin(), commands.end(), argument) == commands.end()) {
        std::string hint = did_you_mean(argument, commands);
        if (hint.empty()) hint = fmt::format("; nibble {}--help lists the commands", path);
        return invalid_argument(fmt::format("unknown command '{}{}'{}", path, argument, hint));
      }
      current = current->get_subcommand(argument);
      *command = path + argument;
      names = option_names(*current);
      continue;
    }
    const size_t equals = argument.find('=');
    std::string name = argument.substr(0, equals);
    const bool is_long = name.starts_with("--");
    auto known = std::find(names.begin(), names.end(), name);
    if (known == names.end() && is_long) {
      known = std::find_if(names.begin(), names.end(),
                           [&](const std::string& other) { return fold(other) == fold(name); });
    }
    if (known == names.end() && !is_long) {
      // "-n5" or "-xyz": the parser takes these apart; the first letter has to be known.
      name = name.substr(0, 2);
      known = std::find(names.begin(), names.end(), name);
    }
    if (known == names.end()) {
      std::string hint = did_you_mean(name, names);
      if (hint.empty()) {
        hint = fmt::format("; nibble{}{} --help lists the options", command->empty() ? "" : " ",
                           *command);
      }
      return invalid_argument(fmt::format("unknown option '{}'{}", name, hint));
    }
    if (is_long) argument.replace(0, name.size(), *known);
    const CLI::Option* option = current->get_option_no_throw(*known);
    const bool value_apart = equals == std::string::npos && (is_long || argument.size() == 2);
    if (option != nullptr && value_apart && option->get_items_expected_min() > 0) {
      i += static_cast<size_t>(option->get_items_expected_min());  // its value may begin with '-'
    }
  }
  return arguments;
}

}  // namespace nibble
