// nibble inspect: what a checkpoint holds, and whether it can be run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/inspection.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/inspect_report.h"

namespace nibble {
namespace {

struct InspectOptions {
  std::string model;
  bool list_tensors = false;
  bool json = false;
  bool values = false;
  bool no_values = false;
  bool quiet = false;
  std::string tensor;
};

Result<int> inspect(const InspectOptions& options) {
  if (options.values && options.no_values) {
    return invalid_argument("--values and --no-values exclude each other");
  }
  const auto path = NIBBLE_TRY(resolve_model(options.model));
  if (!options.tensor.empty()) {
    const auto source = NIBBLE_TRY(SafetensorsSource::open(path));
    print(NIBBLE_TRY(tensor_report(*source, options.tensor, options.json)));
    return 0;
  }
  const CheckValues check_values = options.values      ? CheckValues::kYes
                                   : options.no_values ? CheckValues::kNo
                                                       : CheckValues::kAuto;
  const Inspection inspection =
      NIBBLE_TRY(inspect_checkpoint(path, check_values, !options.json && !options.quiet));
  print(options.json ? json_report(inspection, path, options.list_tensors)
                     : text_report(inspection, path, options.list_tensors));
  return inspection.problems.empty() ? 0 : 1;
}

}  // namespace

void add_inspect_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show what a checkpoint holds and what is wrong with it");
  command
      ->add_option("model", options->model,
                   "A checkpoint's folder, one .safetensors file, or a name such as demo")
      ->type_name("MODEL")
      ->required();
  command->add_flag("--tensors", options->list_tensors,
                    "List every tensor instead of one line per pattern");
  command->add_option("--tensor", options->tensor, "Show one tensor: place, shape, statistics")
      ->type_name("NAME");
  command->add_flag("--values", options->values,
                    "Read every scale, FP8 code, norm and bias [for up to 4 GiB of tensors]");
  command->add_flag("--no-values", options->no_values, "Read only headers and small files");
  command->add_flag("--json", options->json, "Print JSON");
  command->add_flag("-q,--quiet", options->quiet, "No progress line");
  command->footer(
      "Exit code: 0 without problems, 1 with problems, 2 for a wrong command line.\n"
      "Example: nibble inspect demo");
  command->callback([options, exit_code] {
    const auto result = inspect(*options);
    *exit_code = result ? *result : report_error(result.error(), "inspect");
  });
}

}  // namespace nibble
