#include "nibble/plan/calibration.h"

#include <fmt/format.h>

#include <cmath>

#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"

namespace nibble {
namespace {

class Fields {
 public:
  Fields(const JsonValue& json, std::string where) : json_(json), where_(std::move(where)) {}

  // A number in [low, high], or `other` when it is absent.
  PlanResult<double> number(std::string_view name, double low, double high,
                            std::optional<double> other) const {
    const JsonValue* value = json_.find(name);
    if (value == nullptr && other) return *other;
    const auto found = value == nullptr ? std::nullopt : value->as_number();
    if (!found || !(*found >= low && *found <= high)) {
      return plan_error("bad_file",
                        fmt::format("{}: {} is {}, expected a number from {} to {}", where_, name,
                                    value == nullptr ? "missing" : to_json(*value, -1), low, high));
    }
    return *found;
  }

  PlanResult<std::string> text(std::string_view name, std::optional<std::string> other) const {
    const JsonValue* value = json_.find(name);
    if (value == nullptr && other) return *other;
    const std::string* found = value == nullptr ? nullptr : value->as_string();
    if (found == nullptr) {
      return plan_error("bad_file",
                        fmt::format("{}: {} is {}, expected a text", where_, name,
                                    value == nullptr ? "missing" : to_json(*value, -1)));
    }
    return *found;
  }

  // Errors: bad_file for a member that is not in `known`.
  PlanStatus only(const std::vector<std::string>& known) const {
    const auto* object = json_.as_object();
    if (object == nullptr) {
      return plan_error("bad_file",
                        fmt::format("{} is {}, expected an object", where_, json_.kind_name()));
    }
    for (const auto& [name, value] : *object) {
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        return plan_error("bad_file", fmt::format("{}: unknown field '{}'{}", where_, name,
                                                  did_you_mean(name, known)));
      }
    }
    return {};
  }

 private:
  const JsonValue& json_;
  std::string where_;
};

PlanStatus read_memory(const JsonValue& json, const std::string& where, Calibration& calibration) {
  const Fields fields(json, where);
  NIBBLE_TRY(
      fields.only({"context_bytes", "collectives_bytes", "graphs_bytes", "expert_imbalance"}));
  MemoryConstants& memory = calibration.constants.memory;
  const auto replace = [&](std::string_view name, int64_t& value) -> PlanStatus {
    const double found = NIBBLE_TRY(fields.number(name, 0, 1e12, static_cast<double>(value)));
    if (std::llround(found) != value) {
      calibration.notes.push_back(
          fmt::format("{}: {} MiB instead of {}", name, std::llround(found) >> 20, value >> 20));
    }
    value = std::llround(found);
    return {};
  };
  NIBBLE_TRY(replace("context_bytes", memory.context_bytes));
  NIBBLE_TRY(replace("collectives_bytes", memory.collectives_bytes));
  NIBBLE_TRY(replace("graphs_bytes", memory.graphs_bytes));
  memory.expert_imbalance =
      NIBBLE_TRY(fields.number("expert_imbalance", 1, 256, memory.expert_imbalance));
  return {};
}

// What the plan did not foresee becomes part of the context.
PlanStatus read_peak(const JsonValue& json, const std::string& where, const ModelConfig& config,
                     Calibration& calibration) {
  const Fields fields(json, where);
  NIBBLE_TRY(fields.only({"device_bytes_used", "weights_bytes", "ranks", "graphs", "max_num_tokens",
                          "max_batch", "tp", "moe_tp"}));
  const double used = NIBBLE_TRY(fields.number("device_bytes_used", 1, 1e15, std::nullopt));
  const double weights = NIBBLE_TRY(fields.number("weights_bytes", 0, 1e15, std::nullopt));
  const double ranks = NIBBLE_TRY(fields.number("ranks", 1, 4096, 1));
  const double tokens = NIBBLE_TRY(fields.number("max_num_tokens", 1, 1 << 20, std::nullopt));
  const double batch = NIBBLE_TRY(fields.number("max_batch", 1, 1e6, std::nullopt));
  const double tp = NIBBLE_TRY(fields.number("tp", 1, 4096, 1));
  const double moe_tp = NIBBLE_TRY(fields.number("moe_tp", 1, tp, tp));
  const JsonValue* graphs = json.find("graphs");
  const bool with_graphs =
      graphs == nullptr || graphs->as_boolean() == nullptr || *graphs->as_boolean();
  Split split = make_split(ParallelMode::kTp, static_cast<int>(tp));
  split.ep = static_cast<int>(tp / moe_tp);
  MemoryConstants& memory = calibration.constants.memory;
  const int64_t planned = std::llround(weights) +
                          fixed_bytes(memory, static_cast<int>(ranks), with_graphs) +
                          workspace_bytes(config, split, std::llround(tokens), std::llround(batch),
                                          memory.expert_imbalance);
  const int64_t context = memory.context_bytes + std::llround(used) - planned;
  calibration.notes.push_back(
      fmt::format("peak: {:.2f} GB measured, {:.2f} GB planned; context_bytes "
                  "{} MiB instead of {}",
                  used / 1e9, static_cast<double>(planned) / 1e9,
                  std::max<int64_t>(0, context) >> 20, memory.context_bytes >> 20));
  memory.context_bytes = std::max<int64_t>(0, context);
  return {};
}

PlanResult<Measurement> read_measurement(const JsonValue& json, const std::string& where) {
  const Fields fields(json, where);
  NIBBLE_TRY(fields.only({"id", "device", "format", "gpus", "mode", "concurrency", "mean_context",
                          "isl", "osl", "kv", "mtp_draft", "accept_length", "measured"}));
  Measurement row;
  row.id = NIBBLE_TRY(fields.text("id", where));
  row.device = NIBBLE_TRY(fields.text("device", std::nullopt));
  row.format = NIBBLE_TRY(fields.text("format", std::nullopt));
  row.gpus = static_cast<int>(NIBBLE_TRY(fields.number("gpus", 1, 4096, 1)));
  const std::string mode = NIBBLE_TRY(fields.text("mode", "tp"));
  if (mode != "tp" && mode != "adp") {
    return plan_error("bad_file", fmt::format("{}: mode is '{}', expected tp or adp", where, mode));
  }
  row.mode = mode == "adp" ? ParallelMode::kAdp : ParallelMode::kTp;
  row.load.batch = NIBBLE_TRY(fields.number("concurrency", 1, 1e6, 1));
  row.load.isl = NIBBLE_TRY(fields.number("isl", 0, 1e9, 0));
  row.load.osl = NIBBLE_TRY(fields.number("osl", 0, 1e9, 0));
  row.load.mean_context =
      NIBBLE_TRY(fields.number("mean_context", 1, 1e9, row.load.isl + row.load.osl / 2 + 1));
  const std::string kv = NIBBLE_TRY(fields.text("kv", "fp8"));
  const auto kv_format = parse_kv_format(kv);
  if (!kv_format) {
    return plan_error("bad_file", fmt::format("{}: kv is '{}', expected bf16 or fp8", where, kv));
  }
  row.load.kv = *kv_format;
  row.load.draft_tokens = static_cast<int>(NIBBLE_TRY(fields.number("mtp_draft", 0, 5, 0)));
  row.load.accept_length = NIBBLE_TRY(
      fields.number("accept_length", 1, 6, default_accept_length(row.load.draft_tokens)));
  row.measured = NIBBLE_TRY(fields.number("measured", 1e-6, 1e12, std::nullopt));
  return row;
}

PlanStatus read_measurements(const JsonValue& json, std::string_view where,
                             const ModelConfig& config, const Catalogue& catalogue,
                             Calibration& calibration) {
  const auto* list = json.as_array();
  if (list == nullptr) {
    return plan_error("bad_file", fmt::format("{}: measurements is {}, expected an array", where,
                                              json.kind_name()));
  }
  std::vector<Measurement> rows;
  for (size_t i = 0; i < list->size(); ++i) {
    rows.push_back(
        NIBBLE_TRY(read_measurement((*list)[i], fmt::format("{}: measurements[{}]", where, i))));
  }
  if (rows.empty()) return {};
  const SpeedConstants before = calibration.constants.speed;
  calibration.constants.speed = NIBBLE_TRY(fit_constants(rows, config, catalogue, before));
  std::vector<double> errors_before, errors_after;
  for (const Measurement& row : rows) {
    const Prediction old_one = NIBBLE_TRY(predict(row, config, catalogue, before));
    const Prediction new_one =
        NIBBLE_TRY(predict(row, config, catalogue, calibration.constants.speed));
    errors_before.push_back(ratio_error(old_one.tokens_per_second, row.measured));
    errors_after.push_back(ratio_error(new_one.tokens_per_second, row.measured));
  }
  calibration.notes.push_back(
      fmt::format("speed: fitted to {} measurements, median ratio error "
                  "{:.3f} before, {:.3f} after",
                  rows.size(), median(errors_before), median(errors_after)));
  for (const SpeedConstantName& name : speed_constant_names()) {
    const double from = before.*name.member;
    const double to = calibration.constants.speed.*name.member;
    if (from != to) {
      calibration.notes.push_back(fmt::format("{}: {:.4g} instead of {:.4g}", name.name, to, from));
    }
  }
  return {};
}

PlanStatus read_speed(const JsonValue& json, const std::string& where, Calibration& calibration) {
  const Fields fields(json, where);
  std::vector<std::string> names;
  for (const SpeedConstantName& name : speed_constant_names()) names.emplace_back(name.name);
  NIBBLE_TRY(fields.only(names));
  for (const SpeedConstantName& name : speed_constant_names()) {
    double& value = calibration.constants.speed.*name.member;
    const double most = name.name.starts_with("eta") ? 1.0 : 1e6;
    const double found = NIBBLE_TRY(fields.number(name.name, 1e-3, most, value));
    if (found != value) {
      calibration.notes.push_back(
          fmt::format("{}: {:.4g} instead of {:.4g}", name.name, found, value));
    }
    value = found;
  }
  return {};
}

}  // namespace

PlanResult<Calibration> parse_calibration(std::string_view text, std::string_view where,
                                          const ModelConfig& config, const Catalogue& catalogue) {
  const auto json = parse_json(text, where);
  if (!json) return plan_error("bad_file", json.error());
  Calibration calibration;
  if (json->find("schema") == nullptr && json->find("rows") != nullptr) {
    calibration.constants.measured = NIBBLE_TRY(parse_bench(*json, where));
    return calibration;
  }
  const Fields fields(*json, std::string(where));
  NIBBLE_TRY(fields.only({"schema", "memory", "speed", "peak", "measurements"}));
  const std::string schema = NIBBLE_TRY(fields.text("schema", std::nullopt));
  if (schema != "nibble.calibration/1") {
    return plan_error("bad_file", fmt::format("{}: schema is '{}', expected nibble.calibration/1",
                                              where, schema));
  }
  calibration.constants.calibrated = true;
  const auto part = [&](std::string_view name) { return fmt::format("{}: {}", where, name); };
  if (const JsonValue* memory = json->find("memory")) {
    NIBBLE_TRY(read_memory(*memory, part("memory"), calibration));
  }
  if (const JsonValue* peak = json->find("peak")) {
    NIBBLE_TRY(read_peak(*peak, part("peak"), config, calibration));
  }
  if (const JsonValue* rows = json->find("measurements")) {
    NIBBLE_TRY(read_measurements(*rows, where, config, catalogue, calibration));
  }
  if (const JsonValue* speed = json->find("speed")) {
    NIBBLE_TRY(read_speed(*speed, part("speed"), calibration));
  }
  return calibration;
}

PlanResult<Calibration> load_calibration(const std::filesystem::path& path,
                                         const ModelConfig& config, const Catalogue& catalogue) {
  const auto text = read_text_file(path);
  if (!text) return plan_error("bad_file", text.error());
  return parse_calibration(*text, path.string(), config, catalogue);
}

}  // namespace nibble
