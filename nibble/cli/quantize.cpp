// nibble quantize IN OUT: converts an FP8 or BF16 checkpoint to NVFP4; with --verify it compares
// two.
#include "nibble/quantize/quantize.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/calibration_text.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/verify.h"

namespace nibble {
namespace {

struct QuantizeArguments {
  std::string in;
  std::string out;
  std::string scheme = "nvfp4-v2";
  std::string algorithm = WeightAlgorithm().name();
  std::vector<std::string> overrides;
  std::string kv_cache = "fp8";
  std::string calibrate;
  std::string feed = "original";
  CalibrationTextOptions calibration;
  bool verify = false;
  VerifyOptions verify_options;
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
             {"scheme", JsonValue::string(report.recipe.name())},
             {"algorithm", JsonValue::string(report.algorithm.name())},
             {"num_calibration_tokens", JsonValue::integer(report.num_calibration_tokens)},
             {"resumed", JsonValue::boolean(report.resumed)},
             {"reused_bytes", json_of(report.reused_bytes)},
             {"expected_seconds", JsonValue::number(report.expected_seconds)},
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
  text +=
      fmt::format("{:<18}NVFP4 ({}, {}) {}, {} tensors in {} shard{}, {}\n", "output",
                  report.recipe.name(), report.algorithm.name(), format_bytes(report.output_bytes),
                  format_count(static_cast<uint64_t>(report.num_output_tensors)), report.num_shards,
                  report.num_shards == 1 ? "" : "s", change(report.ratio()));
  text +=
      fmt::format("{:<18}{} linears, {} -> {}, {}\n", "quantized",
                  format_count(static_cast<uint64_t>(report.num_quantized_linears)),
                  format_bytes(report.quantized_source_bytes),
                  format_bytes(report.quantized_output_bytes), change(report.quantized_ratio()));
  if (report.num_calibration_tokens > 0) {
    text += fmt::format("{:<18}{} tokens\n", "calibration",
                        format_count(static_cast<uint64_t>(report.num_calibration_tokens)));
  }
  if (report.dry_run) {
    if (report.expected_seconds > 0) {
      text += fmt::format("{:<18}about {} on {} thread{}, disks permitting\n", "time",
                          format_duration(report.expected_seconds), report.threads,
                          report.threads == 1 ? "" : "s");
    }
    text +=
        fmt::format("{:<18}{} needed, {} free{}\n", "disk", format_bytes(report.needed_disk_bytes),
                    format_bytes(report.free_disk_bytes),
                    report.free_disk_bytes < report.needed_disk_bytes ? ": too little" : "");
    return text + "dry run: nothing was written\n";
  }
  text += fmt::format("{:<18}{}, {:.2f} GB/s of source, {} thread{}\n", "time",
                      format_duration(report.seconds), report.gb_per_second(), report.threads,
                      report.threads == 1 ? "" : "s");
  if (report.resumed) {
    text += fmt::format("{:<18}an earlier run, {} of source were done\n", "continued",
                        format_bytes(report.reused_bytes));
  }
  return text + fmt::format("{:<18}{}\n", "written", printable(arguments.out));
}

// What the texts of the command line mean.
Status parse_arguments(QuantizeArguments& arguments) {
  QuantizeOptions& options = arguments.options;
  options.recipe.scheme = NIBBLE_TRY(parse_quantize_scheme(arguments.scheme));
  for (const std::string& text : arguments.overrides) {
    options.recipe.overrides.push_back(NIBBLE_TRY(parse_scheme_override(text)));
  }
  options.algorithm = NIBBLE_TRY(parse_weight_algorithm(arguments.algorithm));
  options.fp8_kv_cache = arguments.kv_cache != "none";
  options.kv_scales = arguments.kv_cache == "fp8-scales";
  options.show_progress = !arguments.quiet;
  options.feed_quantized = arguments.feed == "quantized";
  return {};
}

Status run_quantize(QuantizeArguments& arguments) {
  NIBBLE_TRY(parse_arguments(arguments));
  const auto in = NIBBLE_TRY(resolve_model(arguments.in));
  if (arguments.verify) {
    arguments.verify_options.json = arguments.json;
    arguments.verify_options.threads = arguments.options.threads;
    const auto out = NIBBLE_TRY(resolve_model(arguments.out));
    return verify_quantized(in, out, arguments.verify_options);
  }
  if (!arguments.calibrate.empty()) {
    arguments.options.samples =
        NIBBLE_TRY(read_calibration_text(arguments.calibrate, in, arguments.calibration));
    arguments.options.samples_name = std::filesystem::path(arguments.calibrate).filename().string();
  }
  const auto report = NIBBLE_TRY(quantize_checkpoint(in, arguments.out, arguments.options));
  for (const std::string& warning : report.warnings) log_warning(printable(warning));
  if (arguments.json) {
    print(report_json(report, arguments));
  } else if (!arguments.quiet || arguments.options.dry_run) {
    print(report_text(report, arguments));
  }
  return {};
}

void add_recipe_options(CLI::App& command, QuantizeArguments& arguments) {
  command.add_option("--scheme", arguments.scheme, "What to quantize [nvfp4-v2]")
      ->type_name("NAME");
  command
      .add_option("--override", arguments.overrides,
                  "Exceptions: PATTERN=nvfp4 or PATTERN=bf16 for modules, as '*.down_proj=bf16'")
      ->type_name("P=F")
      ->allow_extra_args(false);
  command
      .add_option("--algorithm", arguments.algorithm,
                  "How codes are chosen [" + arguments.algorithm + "]")
      ->type_name("NAME");
  command
      .add_option(
          "--kv-cache", arguments.kv_cache,
          "What the checkpoint asks for: fp8, fp8-scales (with k_scale, v_scale), none [fp8]")
      ->check(CLI::IsMember({"fp8", "fp8-scales", "none"}).description(""))
      ->type_name("NAME");
  CLI::Option* const calibrate =
      command
          .add_option("--calibrate", arguments.calibrate,
                      "Text or JSON lines (text, messages, ids) to run the model over")
          ->type_name("FILE");
  command.add_option("--samples", arguments.calibration.samples, "Samples to take of it [512]")
      ->needs(calibrate)
      ->check(CLI::Range(1, 1'000'000).description(""))
      ->type_name("N");
  command
      .add_option("--sequence", arguments.calibration.sequence, "Tokens of a sample at most [512]")
      ->needs(calibrate)
      ->check(CLI::Range(1, 1'000'000).description(""))
      ->type_name("N");
  command
      .add_option("--feed", arguments.feed,
                  "Layers that a layer's inputs come from: original or quantized [original]")
      ->needs(calibrate)
      ->check(CLI::IsMember({"original", "quantized"}).description(""))
      ->type_name("NAME");
  command
      .add_option("--backend", arguments.options.backend,
                  "What runs the model for it: auto, cpu, cuda or reference [auto]")
      ->needs(calibrate)
      ->type_name("NAME");
}

// Looks at the text of a size before it is read: "-5" would wrap.
CLI::Validator not_negative() {
  return {[](std::string& text) {
            return text.starts_with('-') ? "expected a size of at least 0" : std::string();
          },
          ""};
}

void add_verify_options(CLI::App& command, QuantizeArguments& arguments) {
  command.add_flag("--verify", arguments.verify,
                   "Compare the checkpoint OUT with the one it was made from, IN");
  command
      .add_option("--text", arguments.verify_options.text,
                  "With --verify: text to compare the two models' logits over")
      ->needs("--verify")
      ->type_name("FILE");
  command
      .add_flag("--w4a4", arguments.verify_options.w4a4,
                "With --verify: quantize activations as Blackwell does")
      ->needs("--verify");
  command
      .add_option("--tokens", arguments.verify_options.tokens,
                  "With --verify: tokens of the text to take [all]")
      ->needs("--verify")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40).description(""))
      ->type_name("N");
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
      "layout. Without --calibrate no data is needed: weight scales come from the weights and\n"
      "input_scale is 1. OUT appears when it is complete; until then OUT.partial holds what is "
      "done,\n"
      "and the same command goes on from there after an interrupt, a crash or a full disk.\n\n"
      "schemes:\n"
      "  nvfp4-v2         dense, shared and routed MLPs, and o_proj (DeepSeek-R1-0528-NVFP4-v2)\n"
      "  nvfp4-mlp        the MLPs alone, as DeepSeek-R1-0528-FP4\n"
      "  nvfp4-attention  v2 and q_a_proj, q_b_proj, kv_a_proj_with_mqa\n"
      "  nvfp4-all        the same in the MTP layer too\n"
      "The rest (router, embeddings, kv_b_proj) stays or becomes BF16.\n\n"
      "algorithms:\n"
      "  max, 4over6, mse            block scales by the largest value, or by the least error\n"
      "  local-hessian               by the least error of the output (needs --calibrate)\n"
      "  gptq-max, gptq-4over6, ...  and later columns make up for errors (needs --calibrate)\n\n"
      "examples:\n"
      "  nibble quantize demo demo-nvfp4\n"
      "  nibble quantize --dry-run DeepSeek-R1-0528 DeepSeek-R1-0528-NVFP4\n"
      "  nibble quantize demo demo-gptq --algorithm gptq-mse --calibrate texts.jsonl\n"
      "  nibble quantize --verify demo demo-nvfp4 --text held-out.txt");
  command
      ->add_option("IN", arguments->in,
                   "FP8 or BF16 checkpoint folder, or a model's name such as demo")
      ->required();
  command->add_option("OUT", arguments->out, "Folder to write; must not exist")->required();
  add_recipe_options(*command, *arguments);
  add_verify_options(*command, *arguments);
  command->add_option("--shard-size", options.shard_bytes, "Tensor bytes of one file [5GB]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->transform(not_negative())
      ->type_name("SIZE");
  command->add_option("--threads", options.threads, "Threads to use [all processors]")
      ->check(CLI::Range(1, 4096).description(""))
      ->type_name("N");
  command->add_option("--max-memory", options.max_memory, "Memory to work with [what is free]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->transform(not_negative())
      ->type_name("SIZE");
  command->add_flag("--resume,!--no-resume", options.resume,
                    "Go on with what an interrupted run has left [on]");
  command->add_flag("--overwrite", options.overwrite, "Replace OUT if it is a checkpoint folder");
  command->add_flag("--dry-run", options.dry_run, "Check, and print sizes and disk space needed");
  command->add_flag("--json", arguments->json, "Print the summary as JSON");
  command->add_flag("--quiet", arguments->quiet, "No progress and no summary");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_quantize(*arguments), "quantize"); });
}

}  // namespace nibble
