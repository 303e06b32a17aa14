// What the subcommands share: how errors are told, what the program exits with, how text from files
// is shown.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace CLI {
class App;
}

namespace nibble {

// Prints "nibble COMMAND: message" on stderr ("nibble: message" for an empty command) and returns
// what to exit with. Control characters in the message are escaped.
int report_error(const Error& error, std::string_view command);

// report_error() for an error, otherwise 0.
int report_status(const Status& status, std::string_view command);

// Text from a file or a request, safe to print on a terminal: control characters and bytes that are
// no UTF-8 become \xNN; line ends are kept.
std::string printable(std::string_view text);

// Writes to standard output. What fails is remembered for finish_output().
void print(std::string_view text);

// Flushes standard output. Returns `code`, or, if the output could not be written, 1 after saying
// so; 141 without a word when the reader of a pipe went away, as a shell reports SIGPIPE.
int finish_output(int code);

// The arguments after the program's name, with option names brought to the spelling they were
// registered with: '_' and '-' are the same in them ("--max_tokens=3" -> "--max-tokens=3").
// Errors: kInvalidArgument for an unknown command or option, with the nearest known ones;
// *command is set to the command's name as soon as it is known.
Result<std::vector<std::string>> check_arguments(const CLI::App& app,
                                                 std::vector<std::string> arguments,
                                                 std::string* command);

}  // namespace nibble
