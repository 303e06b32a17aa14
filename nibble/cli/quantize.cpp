// nibble quantize IN OUT: converts an FP8 or BF16 checkpoint to NVFP4.
#include "nibble/quantize/quantize.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"

namespace nibble {
namespace {

struct QuantizeArguments {
  std::string in;
  std::string out;
  std::string scheme = "nvfp4-v2";
  QuantizeOptions options;
  bool json = false;
  bool quiet = false;
};

JsonValue json_of(uint64_t value) { return JsonValue::integer(static_cast<int64_t>(value)); }

std::string report_json(const QuantizeReport& report, const QuantizeArguments& arguments) {
  JsonValue warnings = JsonValue::array();
  for (const std::string& warning : report.warnings) {
    warnings.push_back(JsonValue::string(printable(warning)));
  }
  return to_json(JsonValue::object({
             {"source", JsonValue::string(printable(arguments.in))},
             {"output", JsonValue::string(printable(arguments.out))},
             {"dry_run", JsonValue::boolean(report.dry_run)},
             {"scheme", JsonValue::string(std::string(quantize_scheme_name(report.scheme)))},
             {"source_format", JsonValue::string(report.source_format)},
             {"num_source_tensors", JsonValue::integer(report.num_source_tensors)},
             {"num_output_tensors", JsonValue::integer(report.num_output_tensors)},
             {"num_quantized_linears", JsonValue::integer(report.num_quantized_linears)},
             {"num_shards", JsonValue::integer(report.num_shards)},
             {"source_bytes", json_of(report.source_bytes)},
             {"output_bytes", json_of(report.output_bytes)},
             {"ratio", JsonValue::number(report.ratio())},
             {"quantized_source_bytes", json_of(report.quantized_source_bytes)},
             {"quantized_output_bytes", json_of(report.quantized_output_bytes)},
             {"quantized_ratio", JsonValue::number(report.quantized_ratio())},
             {"needed_disk_bytes", json_of(report.needed_disk_bytes)},
             {"free_disk_bytes", json_of(report.free_disk_bytes)},
             {"threads", JsonValue::integer(report.threads)},
             {"seconds", JsonValue::number(report.seconds)},
             {"gb_per_second", JsonValue::number(report.gb_per_second())},
             {"warnings", std::move(warnings)},
         })) +
         "\n";
}

// "1.78 times smaller"
std::string change(double ratio) {
  return ratio >= 1 ? fmt::format("{:.2f} times smaller", ratio)
                    : fmt::format("{:.2f} times larger", 1 / ratio);
}

std::string report_text(const QuantizeReport& report, const QuantizeArguments& arguments) {
  std::string text = fmt::format("{:<18}{} {}, {} tensors\n", "source", report.source_format,
                                 format_bytes(report.source_bytes),
                                 format_count(static_cast<uint64_t>(report.num_source_tensors)));
  text += fmt::format("{:<18}NVFP4 ({}) {}, {} tensors in {} shard{}, {}\n", "output",
                      quantize_scheme_name(report.scheme), format_bytes(report.output_bytes),
                      format_count(static_cast<uint64_t>(report.num_output_tensors)),
                      report.num_shards, report.num_shards == 1 ? "" : "s", change(report.ratio()));
  text +=
      fmt::format("{:<18}{} linears, {} -> {}, {}\n", "quantized",
                  format_count(static_cast<uint64_t>(report.num_quantized_linears)),
                  format_bytes(report.quantized_source_bytes),
                  format_bytes(report.quantized_output_bytes), change(report.quantized_ratio()));
  if (report.dry_run) {
    text +=
        fmt::format("{:<18}{} needed, {} free{}\n", "disk", format_bytes(report.needed_disk_bytes),
                    format_bytes(report.free_disk_bytes),
                    report.free_disk_bytes < report.needed_disk_bytes ? ": too little" : "");
    return text + "dry run: nothing was written\n";
  }
  text += fmt::format("{:<18}{}, {:.2f} GB/s of source, {} thread{}\n", "time",
                      format_duration(report.seconds), report.gb_per_second(), report.threads,
                      report.threads == 1 ? "" : "s");
  return text + fmt::format("{:<18}{}\n", "written", printable(arguments.out));
}

Status run_quantize(QuantizeArguments& arguments) {
  arguments.options.scheme = NIBBLE_TRY(parse_quantize_scheme(arguments.scheme));
  arguments.options.show_progress = !arguments.quiet;
  const auto in = NIBBLE_TRY(resolve_model(arguments.in));
  const auto report = NIBBLE_TRY(quantize_checkpoint(in, arguments.out, arguments.options));
  for (const std::string& warning : report.warnings) log_warning(printable(warning));
  if (arguments.json) {
    print(report_json(report, arguments));
  } else if (!arguments.quiet || arguments.options.dry_run) {
    print(report_text(report, arguments));
  }
  return {};
}

}  // namespace

void add_quantize_command(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<QuantizeArguments>();
  QuantizeOptions& options = arguments->options;
  CLI::App* const command =
      app.add_subcommand("quantize", "Convert an FP8 or BF16 checkpoint to NVFP4");
  command->footer(
      "Reads a DeepSeek-V3/R1 checkpoint folder and writes another one in NVIDIA Model "
      "Optimizer's\n"
      "layout. Needs no calibration data and no GPU: scales come from the weights, input_scale is "
      "1.\n"
      "OUT appears only when it is complete; Ctrl-C or an error leaves nothing behind.\n\n"
      "schemes:\n"
      "  nvfp4-v2    dense, shared and routed MLPs, and o_proj, as DeepSeek-R1-0528-NVFP4-v2\n"
      "  nvfp4-mlp   the MLPs alone, as DeepSeek-R1-0528-FP4\n"
      "The rest (other attention matrices, router, embeddings, the MTP layer) stays or becomes "
      "BF16.\n\n"
      "examples:\n"
      "  nibble quantize demo demo-nvfp4\n"
      "  nibble quantize --dry-run DeepSeek-R1-0528 DeepSeek-R1-0528-NVFP4");
  command
      ->add_option("IN", arguments->in,
                   "FP8 or BF16 checkpoint folder, or a model's name such as demo")
      ->required();
  command->add_option("OUT", arguments->out, "Folder to write; must not exist")->required();
  command->add_option("--scheme", arguments->scheme, "What to quantize [nvfp4-v2]")
      ->type_name("NAME");
  command->add_option("--shard-size", options.shard_bytes, "Tensor bytes of one file [5GB]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->type_name("SIZE");
  command->add_option("--threads", options.threads, "Threads to use [all processors]")
      ->check(CLI::Range(1, 4096).description(""))
      ->type_name("N");
  command->add_flag("--overwrite", options.overwrite, "Replace OUT if it is a checkpoint folder");
  command->add_flag("--dry-run", options.dry_run, "Check, and print sizes and disk space needed");
  command->add_flag("--json", arguments->json, "Print the summary as JSON");
  command->add_flag("--quiet", arguments->quiet, "No progress and no summary");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_quantize(*arguments), "quantize"); });
}

}  // namespace nibble
