// nibble tune PACKED: measures the disk and the processor for a packed model and keeps the choice.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/kernels/registry.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/tuner.h"

namespace nibble {
namespace {

constexpr double kHitRates[] = {0.0, 0.25, 0.5, 0.75, 0.9, 1.0};  // whose bounds are told

struct TuneArguments {
  std::string model;
  int threads = 0;
  std::string preset = "balanced";
  bool dry_run = false;
  bool json = false;
};

std::string rate_text(double bytes_a_second) {
  return format_bytes(static_cast<uint64_t>(bytes_a_second)) + "/s";
}

JsonValue json_of(uint64_t value) { return JsonValue::integer(static_cast<int64_t>(value)); }

std::string report_json(const TuneReport& report) {
  JsonValue reads = JsonValue::array();
  for (const auto& measured : report.reads) {
    reads.push_back(JsonValue::object({
        {"description", JsonValue::string(measured.description)},
        {"io_depth", JsonValue::integer(measured.options.depth)},
        {"bytes_per_second", JsonValue::number(measured.rate)},
    }));
  }
  JsonValue bounds = JsonValue::array();
  for (const double hits : kHitRates) {
    if (hits == 1 && report.expert_rate == 0) continue;
    bounds.push_back(JsonValue::object({
        {"hit_rate", JsonValue::number(hits)},
        {"tokens_per_second", JsonValue::number(report.bound(hits))},
    }));
  }
  JsonValue choice = JsonValue::object({});
  std::istringstream lines(tuning_text(report.choice));
  for (std::string name, value; lines >> name >> value;) {
    const bool is_number = value.find_first_not_of("0123456789") == std::string::npos;
    choice.set(name, is_number ? JsonValue::integer(std::stoll(value)) : JsonValue::string(value));
  }
  return to_json(JsonValue::object({
             {"reads", std::move(reads)},
             {"expert_bytes_per_second",
              report.expert_rate > 0 ? JsonValue::number(report.expert_rate) : JsonValue()},
             {"token_bytes", json_of(report.token_bytes)},
             {"expert_bytes", json_of(report.expert_bytes)},
             {"free_bytes", json_of(report.free_bytes)},
             {"bounds", std::move(bounds)},
             {"choice", std::move(choice)},
         })) +
         "\n";
}

void print_report(const TuneReport& report) {
  for (const auto& reads : report.reads) {
    print(fmt::format("{:<44}{}\n", "reads, " + reads.description, rate_text(reads.rate)));
  }
  print(fmt::format("{:<44}{}\n", "experts in memory, one token",
                    report.expert_rate > 0 ? rate_text(report.expert_rate)
                                           : "not measured: laid out for another backend"));
  print(fmt::format("{:<44}{} a token, {} in all, {} memory free\n", "routed experts",
                    format_bytes(report.token_bytes), format_bytes(report.expert_bytes),
                    format_bytes(report.free_bytes)));
  const double share =
      static_cast<double>(*report.choice.expert_memory) / static_cast<double>(report.expert_bytes);
  print("tokens/s at most, from reads and experts alone, if this share is there when wanted:\n");
  for (const double hits : kHitRates) {
    if (hits == 1 && report.expert_rate == 0) continue;
    print(fmt::format("  {:>3.0f} %  {:.2f}\n", 100 * hits, report.bound(hits)));
  }
  print(fmt::format("choice ({:.0f} % of the experts in memory):\n{}", 100 * share,
                    tuning_text(report.choice)));
}

Status run_tune(const TuneArguments& arguments) {
  const auto directory = NIBBLE_TRY(resolve_model(arguments.model));
  if (std::error_code error; !std::filesystem::exists(directory / kExpertFileName, error)) {
    return invalid_argument(
        fmt::format("{} is not packed; nibble pack makes a folder that is", directory.string()));
  }
  const ModelConfig config = NIBBLE_TRY(load_config(directory));
  const auto source = NIBBLE_TRY(SafetensorsSource::open(directory));
  uint64_t rest = 0;
  for (const TensorInfo& tensor : source->tensors()) {
    rest += static_cast<uint64_t>(tensor.shape.num_elements() * dtype_size(tensor.dtype));
  }
  KernelOptions kernel_options;
  kernel_options.threads = arguments.threads;
  const auto kernels = NIBBLE_TRY(make_kernels("cpu", kernel_options));
  const ExpertPreset preset = NIBBLE_TRY(parse_expert_preset(arguments.preset));
  const TuneReport report = NIBBLE_TRY(tune_offload(directory, config, *kernels, rest, preset));

  if (arguments.json) {
    print(report_json(report));
  } else {
    print_report(report);
  }
  if (arguments.dry_run) return {};
  const auto path = directory / kTuningFileName;
  NIBBLE_TRY(write_text_file(path, "# measured by nibble tune\n" + tuning_text(report.choice)));
  if (!arguments.json) {
    print(fmt::format("kept in {}, for runs that say nothing else\n", path.string()));
  }
  return {};
}

}  // namespace

void add_tune_command(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<TuneArguments>();
  CLI::App* const command =
      app.add_subcommand("tune", "Measure this machine for a packed model and keep the choice");
  command->footer("example:\n  nibble tune R1-packed");
  command->add_option("MODEL", arguments->model, "Folder made by nibble pack")->required();
  command->add_option("--threads", arguments->threads, "Threads to use [all processors]")
      ->check(CLI::Range(1, 1024).description(""))
      ->type_name("N");
  command
      ->add_option("--preset", arguments->preset,
                   "What the machine is for: balanced, low-latency or high-throughput; kept, too "
                   "[balanced]")
      ->type_name("NAME");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->add_flag("--dry-run", arguments->dry_run, "Print the choice without keeping it");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_tune(*arguments), "tune"); });
}

}  // namespace nibble
