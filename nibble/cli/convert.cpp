// nibble convert IN OUT --to FORMAT: the same weights in another format or layout.
#include "nibble/quantize/convert.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"

namespace nibble {
namespace {

struct ConvertArguments {
  std::string in;
  std::string out;
  std::string format;
  ConvertOptions options;
  bool quiet = false;
};

Status run_convert(ConvertArguments& arguments) {
  arguments.options.format = NIBBLE_TRY(parse_convert_format(arguments.format));
  arguments.options.show_progress = !arguments.quiet;
  const auto in = NIBBLE_TRY(resolve_model(arguments.in));
  const auto report = NIBBLE_TRY(convert_checkpoint(in, arguments.out, arguments.options));
  if (report.num_inexact_scales > 0) {
    log_warning(
        fmt::format("{} global scales have no exact reciprocal: back again they are one unit in "
                    "the last place off",
                    format_count(static_cast<uint64_t>(report.num_inexact_scales))));
  }
  if (!arguments.quiet) {
    print(fmt::format("{:<18}{} linears, {} tensors, {} in {}\n", "converted",
                      format_count(static_cast<uint64_t>(report.num_converted_linears)),
                      format_count(static_cast<uint64_t>(report.num_output_tensors)),
                      format_bytes(report.output_bytes), format_duration(report.seconds)));
  }
  return {};
}

}  // namespace

void add_convert_command(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<ConvertArguments>();
  ConvertOptions& options = arguments->options;
  CLI::App* const command =
      app.add_subcommand("convert", "Write a checkpoint in another format or layout");
  command->footer(
      "formats:\n"
      "  bf16                every linear layer in BF16\n"
      "  fp8                 DeepSeek's FP8 with 128x128 blocks\n"
      "  compressed-tensors  NVFP4 as nvfp4-pack-quantized, codes and block scales unchanged\n"
      "  modelopt            from that layout back to NVIDIA Model Optimizer's\n\n"
      "examples:\n"
      "  nibble convert demo-nvfp4 demo-bf16 --to bf16\n"
      "  nibble convert demo-nvfp4 demo-packed --to compressed-tensors");
  command->add_option("IN", arguments->in, "Checkpoint folder, or a model's name")->required();
  command->add_option("OUT", arguments->out, "Folder to write; must not exist")->required();
  command->add_option("--to", arguments->format, "Format to write")
      ->required()
      ->type_name("FORMAT");
  command->add_option("--shard-size", options.shard_bytes, "Tensor bytes of one file [5GB]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->type_name("SIZE");
  command->add_option("--threads", options.threads, "Threads to use [all processors]")
      ->check(CLI::Range(1, 4096).description(""))
      ->type_name("N");
  command->add_flag("--overwrite", options.overwrite, "Replace OUT if it is a checkpoint folder");
  command->add_flag("--quiet", arguments->quiet, "No progress and no summary");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_convert(*arguments), "convert"); });
}

}  // namespace nibble
