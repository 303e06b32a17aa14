#include "nibble/plan/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace nibble {
namespace {

// The folder in quotes for a shell, when it needs them.
std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && text.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789/._-+=:@%") == std::string::npos;
  if (plain) return text;
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

// What nibble quantize --scheme calls a format; empty: it doesn't make it.
std::string_view scheme_of(std::string_view format_id) {
  if (format_id == "nvfp4-v1") return "nvfp4-mlp";
  if (format_id == "nvfp4-v2" || format_id == "nvfp4-attention") return format_id;
  return {};
}

std::string no_backend(const PlanDevice& device) {
  if (device.vendor == "AMD" && !device.is_cpu()) return "AMD GPUs";
  if (device.vendor == "Intel" && !device.is_cpu()) return "Intel GPUs";
  if (device.vendor == "Apple") return "Apple GPUs";
  return {};
}

}  // namespace

void add_launch(PlanReport& report, const std::optional<PlanFormat>& asked_format) {
  const Placement& chosen = report.chosen;
  const Split& split = chosen.split;
  if (chosen.verdict == Verdict::kDoesNotFit) return;
  if (report.weights.cell(WeightKind::kRoutedExperts).storage == Storage::kGguf) {
    report.notes.push_back("nibble does not run GGUF files: the level is planned for comparison");
    return;
  }
  if (const std::string who = no_backend(report.device); !who.empty()) {
    report.notes.push_back(
        fmt::format("nibble has no backend for {}: there is no command for this plan", who));
    return;
  }
  if (split.pp > 1) {
    report.notes.push_back("nibble does not split by layers: there is no command for this plan");
    return;
  }
  std::string directory = "DIR";
  const std::string& stored = report.model->stored_format;
  if (!report.model->directory.empty() && (!asked_format || asked_format->id == stored)) {
    directory = shell_word(report.model->directory);
  } else if (const std::string_view scheme = scheme_of(report.format_id); !scheme.empty()) {
    const std::string source =
        report.model->directory.empty() ? "FP8_DIR" : shell_word(report.model->directory);
    report.steps_before.push_back(
        fmt::format("nibble quantize {} DIR --scheme {}", source, scheme));
  }
  std::string command = fmt::format("nibble serve {}", directory);
  if (report.device.is_cpu()) {
    command += " --device cpu";
  } else {
    command += fmt::format(" --tp {} --ep {}", split.gpus, split.ep);
    if (split.mode == ParallelMode::kAdp) command += " --attention-dp";
  }
  const int64_t context = round_up_to_blocks(report.request.context);
  const int64_t batch =
      std::clamp<int64_t>(chosen.memory.tokens / context, 1, chosen.max_batch_per_rank);
  if (report.kv == KvFormat::kFp8Ds) {
    report.notes.push_back(
        "nibble serve has no --kv fp8-ds; the command names fp8, which takes less");
  }
  command += fmt::format(
      " --kv {} --kv-fraction {} --max-batch {} --max_num_tokens {} "
      "--max_seq_len {}",
      report.kv == KvFormat::kBf16 ? "bf16" : "fp8", report.request.kv_fraction, batch,
      chosen.max_num_tokens, report.request.context);
  if (!report.request.graphs) command += " --no-graphs";
  if (!report.device.is_cpu()) command += " --backend cuda";
  if (report.request.draft_tokens > 0) {
    report.steps_before.push_back(fmt::format(
        "echo 'speculative_config: {{decoding_type: MTP, num_nextn_predict_layers: {}}}' "
        "> mtp.yaml",
        report.request.draft_tokens));
    command += " --config mtp.yaml";
  }
  if (chosen.offload) {
    report.notes.push_back(
        "experts in RAM or on the SSD need `nibble pack` and expert_memory settings that depend on "
        "the machine (docs/offload.md); the command leaves them out, and several ranks have none");
  }
  if (split.gpus > report.device.gpus_per_node) {
    report.notes.push_back(
        fmt::format("{} nodes of {} devices: started through mpirun, one rank a "
                    "device",
                    (split.gpus + report.device.gpus_per_node - 1) / report.device.gpus_per_node,
                    report.device.gpus_per_node));
  }
  const std::string& name = report.device.name;
  const bool is_h200 =
      name.find("H200") != std::string::npos && name.find("GH200") == std::string::npos;
  if (!report.device.is_cpu() && !is_h200) {
    report.notes.push_back("nibble's CUDA kernels have been run on H200 GPUs alone");
  }
  report.launch = std::move(command);
}

}  // namespace nibble
