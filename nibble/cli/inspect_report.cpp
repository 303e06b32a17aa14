#include "nibble/cli/inspect_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/name_patterns.h"
#include "nibble/cli/cli_common.h"

namespace nibble {
namespace {

std::string count_text(int64_t count) { return format_count(static_cast<uint64_t>(count)); }
std::string bytes_text(int64_t bytes) { return format_bytes(static_cast<uint64_t>(bytes)); }
int64_t tensor_bytes(const TensorInfo& info) {
  return info.shape.num_elements() * dtype_size(info.dtype);
}

// One line of the tensor table: a pattern of names, or one tensor.
struct Row {
  std::string name;
  std::string dtype;
  std::string shape;
  int64_t count = 0;
  int64_t num_bytes = 0;
  std::string shard;  // with list_tensors
};

std::vector<Row> tensor_rows(const Inspection& inspection, bool list_tensors) {
  std::vector<Row> rows;
  if (list_tensors) {
    for (const TensorInfo& info : inspection.source->tensors()) {
      rows.push_back({info.name, std::string(dtype_name(info.dtype)), info.shape.to_string(), 1,
                      tensor_bytes(info), info.shard});
    }
    return rows;
  }
  // Equal names up to numbers, of equal dtype and shape, are one row.
  std::map<std::tuple<std::string, std::string, std::string>, std::pair<NamePattern, int64_t>> map;
  for (const TensorInfo& info : inspection.source->tensors()) {
    auto& [pattern, bytes] = map[{NamePattern::key(info.name), std::string(dtype_name(info.dtype)),
                                  info.shape.to_string()}];
    pattern.add(info.name);
    bytes += tensor_bytes(info);
  }
  for (const auto& [key, value] : map) {
    rows.push_back({value.first.to_string(),
                    std::get<1>(key),
                    std::get<2>(key),
                    value.first.count(),
                    value.second,
                    {}});
  }
  return rows;
}

std::string quant_text(const Inspection& inspection) {
  if (!inspection.quant) return "unknown";
  const QuantConfig& quant = *inspection.quant;
  std::string text = "none";
  if (quant.algo == QuantAlgo::kNvfp4) text = fmt::format("NVFP4, blocks of {}", quant.group_size);
  if (quant.algo == QuantAlgo::kFp8Block) text = "FP8, blocks of 128x128";
  if (!quant.producer.empty()) text += ", by " + quant.producer;
  text += fmt::format(" (says {})", quant.source);
  return text;
}

// "NVFP4", or "NVFP4 174, BF16 3" where weights differ.
std::string formats_text(const ClassSummary& summary) {
  std::string text;
  for (const auto& [format, count] : summary.formats) {
    if (!text.empty()) text += ", ";
    text += summary.formats.size() == 1 ? format : fmt::format("{} {}", format, count_text(count));
  }
  return text;
}

// Columns padded to their widest cell, two spaces apart; numbers to the right.
std::string table(const std::vector<std::vector<std::string>>& rows,
                  const std::vector<bool>& right) {
  std::vector<size_t> widths(right.size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += right[i] ? fmt::format("  {:>{}}", row[i], widths[i])
                       : fmt::format("  {:<{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string list_text(const char* title, const std::vector<std::string>& lines) {
  if (lines.empty()) return fmt::format("\n{}: none\n", title);
  std::string text = fmt::format("\n{} ({}):\n", title, lines.size());
  for (const std::string& line : lines) text += "  " + line + "\n";
  return text;
}

std::vector<std::string> class_row(std::string_view title, const ClassSummary& summary) {
  return {std::string(title), formats_text(summary), count_text(summary.num_weights),
          count_text(summary.num_parameters), bytes_text(summary.num_bytes)};
}

JsonValue class_json(std::string_view name, const ClassSummary& summary) {
  JsonValue json = JsonValue::object();
  json.set("class", JsonValue::string(std::string(name)));
  JsonValue formats = JsonValue::object();
  for (const auto& [format, count] : summary.formats) {
    formats.set(format, JsonValue::integer(count));
  }
  json.set("formats", std::move(formats));
  json.set("weights", JsonValue::integer(summary.num_weights));
  json.set("parameters", JsonValue::integer(summary.num_parameters));
  json.set("bytes", JsonValue::integer(summary.num_bytes));
  return json;
}

JsonValue strings_json(const std::vector<std::string>& strings) {
  JsonValue json = JsonValue::array();
  for (const std::string& text : strings) json.push_back(JsonValue::string(text));
  return json;
}

JsonValue config_json(const ModelConfig& c) {
  JsonValue json = JsonValue::object();
  json.set("architecture", JsonValue::string("DeepseekV3ForCausalLM"));
  const std::pair<const char*, int64_t> fields[] = {
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"first_k_dense_replace", c.first_k_dense_replace},
      {"num_nextn_predict_layers", c.num_nextn_predict_layers},
      {"num_attention_heads", c.num_attention_heads},
      {"q_lora_rank", c.q_lora_rank},
      {"kv_lora_rank", c.kv_lora_rank},
      {"qk_nope_head_dim", c.qk_nope_head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"v_head_dim", c.v_head_dim},
      {"n_routed_experts", c.n_routed_experts},
      {"n_shared_experts", c.n_shared_experts},
      {"num_experts_per_tok", c.num_experts_per_tok},
      {"n_group", c.n_group},
      {"topk_group", c.topk_group},
      {"max_position_embeddings", c.max_position_embeddings},
  };
  for (const auto& [name, value] : fields) json.set(name, JsonValue::integer(value));
  return json;
}

std::string_view algo_name(QuantAlgo algo) {
  switch (algo) {
    case QuantAlgo::kNone:
      return "none";
    case QuantAlgo::kFp8Block:
      return "fp8_block";
    case QuantAlgo::kNvfp4:
      return "NVFP4";
  }
  return "?";
}

}  // namespace

std::string text_report(const Inspection& inspection, const std::filesystem::path& path,
                        bool list_tensors) {
  std::string text = path.string() + "\n";
  std::vector<std::vector<std::string>> facts;
  if (inspection.config) {
    const ModelConfig& c = *inspection.config;
    const int dense = std::min(c.first_k_dense_replace, c.num_hidden_layers);
    facts.push_back({"architecture", "DeepseekV3ForCausalLM"});
    facts.push_back(
        {"layers", fmt::format("{} dense, {} MoE, {} MTP", dense, c.num_hidden_layers - dense,
                               c.num_nextn_predict_layers)});
    facts.push_back({"experts", fmt::format("{} routed ({} a token, from {} of {} groups), {} "
                                            "shared",
                                            c.n_routed_experts, c.num_experts_per_tok, c.topk_group,
                                            c.n_group, c.n_shared_experts)});
    facts.push_back(
        {"sizes", fmt::format("hidden_size {}, {} heads, kv_lora_rank {}, vocab_size {}",
                              c.hidden_size, c.num_attention_heads, c.kv_lora_rank, c.vocab_size)});
  }
  facts.push_back({"quantization", quant_text(inspection)});
  if (inspection.quant) {
    const std::string& algo = inspection.quant->kv_cache_quant_algo;
    facts.push_back({"KV cache", algo.empty() ? "not quantized" : algo});
  }
  const auto& source = *inspection.source;
  facts.push_back(
      {"files", fmt::format("{} safetensors, {} tensors, {}", source.shard_names().size(),
                            count_text(static_cast<int64_t>(source.tensors().size())),
                            bytes_text(inspection.total.num_bytes))});
  const int64_t copied = inspection.num_copied_parameters;
  std::string parameters = count_text(inspection.total.num_parameters - copied);
  if (copied > 0) {
    parameters += fmt::format(" (and {} in the MTP layer's copies of embed_tokens and lm_head)",
                              count_text(copied));
  }
  facts.push_back({"parameters", std::move(parameters)});
  facts.push_back({"values", inspection.values_checked
                                 ? "every scale, FP8 code, norm and bias checked"
                                 : "not checked (--values reads them)"});
  text += table(facts, {false, false});

  std::vector<std::vector<std::string>> classes = {
      {"module", "format", "weights", "parameters", "size"}};
  for (size_t i = 0; i < inspection.classes.size(); ++i) {
    const ClassSummary& summary = inspection.classes[i];
    if (summary.num_bytes == 0 && summary.num_weights == 0) continue;
    classes.push_back(class_row(module_class_title(static_cast<ModuleClass>(i)), summary));
  }
  if (inspection.other.num_weights > 0) classes.push_back(class_row("other", inspection.other));
  std::vector<std::string> total = class_row("total", inspection.total);
  total[1] = fmt::format("and {} scales", count_text(inspection.num_scales));
  classes.push_back(std::move(total));
  text += "\n" + table(classes, {false, false, true, true, true});

  std::vector<std::vector<std::string>> tensors = {{"tensor", "dtype", "shape", "count", "size"}};
  if (list_tensors) tensors[0][3] = "shard";
  for (const Row& row : tensor_rows(inspection, list_tensors)) {
    tensors.push_back({row.name, row.dtype, row.shape,
                       list_tensors ? row.shard : count_text(row.count),
                       bytes_text(row.num_bytes)});
  }
  text += "\n" + table(tensors, {false, false, false, !list_tensors, true});
  if (!inspection.warnings.empty()) text += list_text("warnings", inspection.warnings);
  text += list_text("problems", inspection.problems);
  return printable(text);
}

std::string json_report(const Inspection& inspection, const std::filesystem::path& path,
                        bool list_tensors) {
  JsonValue json = JsonValue::object();
  json.set("path", JsonValue::string(printable(path.string())));
  json.set("config", inspection.config ? config_json(*inspection.config) : JsonValue());
  JsonValue quantization;
  if (inspection.quant) {
    const QuantConfig& quant = *inspection.quant;
    quantization.set("quant_algo", JsonValue::string(std::string(algo_name(quant.algo))));
    quantization.set("kv_cache_quant_algo", quant.kv_cache_quant_algo.empty()
                                                ? JsonValue()
                                                : JsonValue::string(quant.kv_cache_quant_algo));
    quantization.set("source", JsonValue::string(printable(quant.source)));
    quantization.set("producer", JsonValue::string(quant.producer));
    quantization.set("exclude_modules", strings_json(quant.exclude_modules));
  }
  json.set("quantization", std::move(quantization));
  json.set("files", strings_json(inspection.source->shard_names()));
  JsonValue classes = JsonValue::array();
  for (size_t i = 0; i < inspection.classes.size(); ++i) {
    if (inspection.classes[i].num_bytes == 0) continue;
    classes.push_back(
        class_json(module_class_name(static_cast<ModuleClass>(i)), inspection.classes[i]));
  }
  if (inspection.other.num_bytes > 0) classes.push_back(class_json("other", inspection.other));
  json.set("classes", std::move(classes));
  JsonValue totals = JsonValue::object();
  totals.set("tensors",
             JsonValue::integer(static_cast<int64_t>(inspection.source->tensors().size())));
  totals.set("weights", JsonValue::integer(inspection.total.num_weights));
  totals.set("scales", JsonValue::integer(inspection.num_scales));
  totals.set("parameters", JsonValue::integer(inspection.total.num_parameters));
  totals.set("copied_parameters", JsonValue::integer(inspection.num_copied_parameters));
  totals.set("bytes", JsonValue::integer(inspection.total.num_bytes));
  json.set("totals", std::move(totals));
  JsonValue tensors = JsonValue::array();
  for (const Row& row : tensor_rows(inspection, list_tensors)) {
    JsonValue item = JsonValue::object();
    item.set(list_tensors ? "name" : "pattern", JsonValue::string(row.name));
    item.set("dtype", JsonValue::string(row.dtype));
    item.set("shape", JsonValue::string(row.shape));
    if (!list_tensors) item.set("count", JsonValue::integer(row.count));
    item.set("bytes", JsonValue::integer(row.num_bytes));
    if (list_tensors) item.set("shard", JsonValue::string(row.shard));
    tensors.push_back(std::move(item));
  }
  json.set("tensors", std::move(tensors));
  json.set("values_checked", JsonValue::boolean(inspection.values_checked));
  json.set("warnings", strings_json(inspection.warnings));
  json.set("problems", strings_json(inspection.problems));
  return to_json(json) + "\n";
}

}  // namespace nibble
