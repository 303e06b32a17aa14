// nibble pack MODEL OUT: a checkpoint folder whose routed experts lie in one file as the backend
// reads them.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/kernels/registry.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_packer.h"
#include "nibble/quantize/config_files.h"
#include "nibble/quantize/output_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct PackArguments {
  std::string in;
  std::string out;
  std::string backend = "cpu";
  int threads = 0;
  bool overwrite = false;
  bool quiet = false;
  bool json = false;
};

std::string report_json(const PackExpertsReport& report, const PackArguments& arguments) {
  return to_json(JsonValue::object({
             {"source", JsonValue::string(printable(arguments.in))},
             {"output", JsonValue::string(printable(arguments.out))},
             {"backend", JsonValue::string(arguments.backend)},
             {"num_experts", JsonValue::integer(report.num_records)},
             {"num_reused", JsonValue::integer(report.num_reused)},
             {"expert_file_bytes", JsonValue::integer(static_cast<int64_t>(report.file_bytes))},
             {"seconds", JsonValue::number(report.seconds)},
         })) +
         "\n";
}

bool is_routed_expert(std::string_view name) {
  return name.starts_with("model.layers.") && name.find(".mlp.experts.") != std::string_view::npos;
}

// Names, sizes and times of the folder's weight files and config.json: other weights of the same
// shapes must not continue a file that was begun.
Result<uint64_t> fingerprint(const fs::path& directory, const CheckpointSource& source) {
  std::string text = NIBBLE_TRY(read_text_file(directory / "config.json"));
  std::string_view last;
  for (const TensorInfo& tensor : source.tensors()) {
    text +=
        fmt::format("{} {} {}\n", tensor.name, dtype_name(tensor.dtype), tensor.shape.to_string());
    if (tensor.shard == last) continue;
    last = tensor.shard;
    struct stat status = {};
    if (::stat((directory / tensor.shard).c_str(), &status) == 0) {
      text += fmt::format("{} {} {}\n", tensor.shard, status.st_size, status.st_mtime);
    }
  }
  return expert_checksum(std::as_bytes(std::span(text)));
}

// Everything that is no routed expert.
Status write_rest(const CheckpointSource& source, const fs::path& path) {
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : source.tensors()) {
    if (!is_routed_expert(tensor.name)) tensors.push_back(tensor);
  }
  auto writer = NIBBLE_TRY(SafetensorsWriter::create(path, tensors));
  for (const TensorInfo& tensor : tensors) {
    const TensorView view = NIBBLE_TRY(source.read(tensor.name));
    NIBBLE_TRY(writer.write(tensor.name, view.bytes));
    source.release(tensor.name);
  }
  return writer.commit();
}

Status copy_small_files(const fs::path& in, const fs::path& out) {
  std::vector<std::string> names = NIBBLE_TRY(companion_files(in));
  names.emplace_back("config.json");
  if (fs::exists(in / "hf_quant_config.json")) names.emplace_back("hf_quant_config.json");
  for (const std::string& name : names) {
    const std::string text = NIBBLE_TRY(read_text_file(in / name));
    NIBBLE_TRY(write_text_file(out / name, text));
  }
  return {};
}

Status run_pack(const PackArguments& arguments) {
  const fs::path in = NIBBLE_TRY(resolve_model(arguments.in));
  const fs::path resolved_in = NIBBLE_TRY(resolved_path(in));
  const fs::path resolved_out = NIBBLE_TRY(resolved_path(arguments.out));
  if (is_within(resolved_out, resolved_in) || is_within(resolved_in, resolved_out)) {
    return invalid_argument(
        fmt::format("{} and {} lie in one another", arguments.in, arguments.out));
  }
  if (fs::exists(in / kExpertFileName)) {
    return invalid_argument(fmt::format("{} is packed already", in.string()));
  }
  const ModelConfig config = NIBBLE_TRY(load_config(in));
  const auto source = NIBBLE_TRY(SafetensorsSource::open(in));
  PackExpertsOptions options;
  options.threads = arguments.threads > 0 ? arguments.threads : available_processors();
  options.show_progress = !arguments.quiet;
  options.source_fingerprint = NIBBLE_TRY(fingerprint(in, *source));
  KernelOptions kernel_options;
  kernel_options.threads = 1;
  const auto kernels = NIBBLE_TRY(make_kernels(arguments.backend, kernel_options));
  auto directory =
      NIBBLE_TRY(OutputDirectory::create(arguments.out, arguments.overwrite, /*resume=*/true));
  directory.keep(true);
  const fs::path& out = directory.partial_path();
  const fs::path file = out / kExpertFileName;
  if (std::error_code error; fs::exists(file, error)) {
    // An earlier run had come to the rest; it may have been of another checkpoint.
    fs::rename(file, fs::path(file) += ".part", error);
    if (error) return unavailable(fmt::format("cannot rename {}", file.string()));
  }
  const PackExpertsReport report =
      NIBBLE_TRY(pack_experts(*source, config, *kernels, file, options));
  NIBBLE_TRY(write_rest(*source, out / "model.safetensors"));
  NIBBLE_TRY(copy_small_files(in, out));
  NIBBLE_TRY(directory.commit());
  if (arguments.json) {
    print(report_json(report, arguments));
  } else if (!arguments.quiet) {
    print(fmt::format("{:<18}{} experts, {} in {}{}\n", "packed",
                      format_count(static_cast<uint64_t>(report.num_records)),
                      format_bytes(report.file_bytes), format_duration(report.seconds),
                      report.num_reused > 0
                          ? fmt::format(", {} of them by an earlier run", report.num_reused)
                          : std::string()));
  }
  return {};
}

}  // namespace

void add_pack_command(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<PackArguments>();
  CLI::App* const command = app.add_subcommand(
      "pack", "Lay a model's experts out for reading one at a time, for models larger than memory");
  command->footer(
      "OUT is a model like MODEL, with the same weights; its routed experts lie in "
      "experts.nibble.\n"
      "A run that was stopped goes on where it was.\n\n"
      "examples:\n"
      "  nibble pack R1-NVFP4 R1-packed\n"
      "  nibble run R1-packed --expert-memory 96GB -p \"The capital of France is\"");
  command->add_option("MODEL", arguments->in, "Checkpoint folder, or a model's name")->required();
  command->add_option("OUT", arguments->out, "Folder to write; must not exist")->required();
  command
      ->add_option("--backend", arguments->backend,
                   "Who will read it: cpu, cuda or reference [cpu]")
      ->type_name("NAME");
  command->add_option("--threads", arguments->threads, "Threads to use [all processors]")
      ->check(CLI::Range(1, 4096).description(""))
      ->type_name("N");
  command->add_flag("--overwrite", arguments->overwrite,
                    "Replace OUT if it is a checkpoint folder");
  command->add_flag("--quiet", arguments->quiet, "No progress and no summary");
  command->add_flag("--json", arguments->json, "Print JSON instead of the summary");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_pack(*arguments), "pack"); });
}

}  // namespace nibble
