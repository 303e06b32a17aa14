#include "nibble/plan/report_json.h"

#include <cmath>

namespace nibble {
namespace {

JsonValue integer(int64_t value) { return JsonValue::integer(value); }
JsonValue text(std::string_view value) { return JsonValue::string(std::string(value)); }

// Rounded to six significant digits: an estimate has no more to say.
JsonValue number(double value) {
  if (!std::isfinite(value)) return {};
  if (value == 0) return JsonValue::number(0);
  const double unit = std::pow(10.0, 5 - std::floor(std::log10(std::abs(value))));
  return JsonValue::number(std::round(value * unit) / unit);
}
JsonValue number(const std::optional<double>& value) {
  return value ? number(*value) : JsonValue();
}

JsonValue texts(const std::vector<std::string>& values) {
  JsonValue array = JsonValue::array();
  for (const std::string& value : values) array.push_back(text(value));
  return array;
}

JsonValue model_json(const PlanReport& report) {
  const PlanModel& model = *report.model;
  const ModelWeights& weights = report.weights;
  return JsonValue::object({{"name", text(model.name)},
                            {"architecture", text("DeepseekV3ForCausalLM")},
                            {"source", text(model.source)},
                            {"parameters", integer(weights.main_parameters())},
                            {"active", integer(weights.active_parameters(model.config))},
                            {"mtp_parameters", integer(weights.mtp_block_parameters())},
                            {"layers", integer(model.config.num_hidden_layers)},
                            {"max_context", integer(model.config.max_position_embeddings)}});
}

JsonValue request_json(const PlanReport& report) {
  return JsonValue::object({{"quant", text(report.format_id)},
                            {"kv", text(kv_format_name(report.kv))},
                            {"context", integer(report.request.context)},
                            {"batch", integer(report.request.batch)},
                            {"mtp", integer(report.request.draft_tokens)},
                            {"isl", integer(report.request.isl)},
                            {"osl", integer(report.request.osl)},
                            {"method", text("exact")}});
}

JsonValue hardware_json(const PlanReport& report) {
  JsonValue array = JsonValue::array();
  if (report.hardware->vram_bytes) {
    array.push_back(JsonValue::object({{"id", text("vram")},
                                       {"count", integer(1)},
                                       {"bytes", integer(*report.hardware->vram_bytes)},
                                       {"bytes_source", text("user")}}));
  }
  for (const DeviceGroup& group : report.hardware->groups) {
    const PlanDevice& device = group.device;
    array.push_back(
        JsonValue::object({{"id", text(device.id)},
                           {"name", text(device.name)},
                           {"count", integer(group.count)},
                           {"bytes", integer(device.memory_bytes)},
                           {"bytes_source", text(bytes_source_name(device.bytes_source))},
                           {"checked", text(device.checked_figures)}}));
  }
  return array;
}

JsonValue format_json(const PlanReport& report) {
  const ModelWeights& weights = report.weights;
  JsonValue classes = JsonValue::object();
  for (const bool mtp : {false, true}) {
    for (const WeightKind kind : kAllWeightKinds) {
      const WeightCell& cell = weights.cell(kind, mtp);
      if (cell.bytes == 0) continue;
      classes.set((mtp ? "mtp_" : "") + std::string(weight_kind_name(kind)), integer(cell.bytes));
    }
  }
  const bool mtp = report.request.draft_tokens > 0;
  return JsonValue::object(
      {{"name", text(report.format_id)},
       {"file_bytes", integer(weights.file_bytes())},
       {"resident_bytes", integer(weights.resident_bytes(mtp))},
       {"bits_per_parameter", number(static_cast<double>(weights.resident_bytes(false)) * 8 /
                                     static_cast<double>(weights.main_parameters()))},
       {"by_class", classes}});
}

JsonValue placement_json(const PlanReport& report, const Placement& placement) {
  const RankMemory& memory = placement.memory;
  const Split& split = placement.split;
  JsonValue json = JsonValue::object(
      {{"verdict", text(verdict_name(placement.verdict))},
       {"mode", text(parallel_mode_name(split.mode))},
       {"tp", integer(split.tp)},
       {"ep", integer(split.ep)},
       {"dp", integer(split.dp)},
       {"pp", integer(split.pp)},
       {"per_device", JsonValue::object({{"total", integer(memory.device_bytes)},
                                         {"weights", integer(memory.weights)},
                                         {"fixed", integer(memory.fixed)},
                                         {"workspace", integer(memory.workspace)},
                                         {"kv_pool", integer(memory.pool)},
                                         {"reserve", integer(memory.reserve())},
                                         {"short", integer(placement.short_bytes)}})},
       {"kv", JsonValue::object({{"bytes_per_token", integer(memory.kv_bytes_per_token)},
                                 {"tokens_per_device", integer(memory.tokens)},
                                 {"tokens_total", integer(memory.tokens * split.dp)},
                                 {"block", integer(kKvBlockTokens)}})},
       {"limits", JsonValue::object({{"max_context", integer(placement.max_context)},
                                     {"max_batch", integer(placement.max_batch)},
                                     {"max_num_tokens", integer(placement.max_num_tokens)}})}});
  if (placement.offload) {
    const OffloadPlan& offload = *placement.offload;
    json.set("offload", JsonValue::object({{"gpu", integer(offload.gpu)},
                                           {"ram", integer(offload.ram)},
                                           {"ssd", integer(offload.ssd)},
                                           {"expert_bytes", integer(offload.expert_bytes)},
                                           {"short", integer(offload.short_bytes)}}));
  } else {
    json.set("offload", JsonValue());
  }
  if (&placement == &report.chosen) {
    json.set("fractions",
             JsonValue::object({{"kv_fraction", number(report.request.kv_fraction)},
                                {"gpu_memory_utilization", number(report.gpu_memory_utilization())},
                                {"mem_fraction_static", number(report.mem_fraction_static())}}));
  }
  return json;
}

JsonValue points_json(const Placement& placement) {
  JsonValue array = JsonValue::array();
  for (const SpeedPoint& point : placement.points) {
    array.push_back(JsonValue::object(
        {{"batch", integer(point.batch)},
         {"tok_s", number(point.tokens_per_second)},
         {"tok_s_user", number(point.per_user())},
         {"low", number(point.tokens_per_second * (point.measured ? 1 : kRangeLow))},
         {"high", number(point.tokens_per_second * (point.measured ? 1 : kRangeHigh))},
         {"measured", JsonValue::boolean(point.measured)},
         {"step_ms", JsonValue::object({{"mem", number(point.step.mem)},
                                        {"comp", number(point.step.comp)},
                                        {"comm", number(point.step.comm)},
                                        {"fixed", number(point.step.fixed)},
                                        {"prefill", number(point.step.prefill)}})}}));
  }
  return array;
}

}  // namespace

JsonValue plan_json(const PlanReport& report) {
  JsonValue alternatives = JsonValue::array();
  for (const Placement& placement : report.alternatives) {
    JsonValue json = placement_json(report, placement);
    json.set("points", points_json(placement));
    alternatives.push_back(std::move(json));
  }
  std::optional<double> energy;
  // J a token is MJ a million tokens, and a kWh is 3.6 MJ.
  if (report.joules_per_token) energy = *report.joules_per_token / 3.6;
  return JsonValue::object(
      {{"schema", text("nibble.plan/1")},
       {"model", model_json(report)},
       {"request", request_json(report)},
       {"hardware", hardware_json(report)},
       {"format", format_json(report)},
       {"plan", placement_json(report, report.chosen)},
       {"speed", JsonValue::object({{"estimate", JsonValue::boolean(true)},
                                    {"points", points_json(report.chosen)},
                                    {"ttft_ms", number(report.ttft_ms)},
                                    {"ttft_prompt", integer(report.ttft_prompt)},
                                    {"load_s", number(report.load_s)},
                                    {"download_s", number(report.download_s)},
                                    {"watts", number(report.watts)},
                                    {"kwh_per_mtok", number(energy)},
                                    {"price_per_mtok", number(report.price_per_mtok)}})},
       {"alternatives", alternatives},
       {"launch", text(report.launch)},
       {"before", texts(report.steps_before)},
       {"changes", texts(report.changes)},
       {"assumptions", texts(report.assumptions)},
       {"notes", texts(report.notes)},
       {"error", JsonValue()}});
}

JsonValue error_json(const PlanError& error) {
  return JsonValue::object({{"schema", text("nibble.plan/1")},
                            {"error", JsonValue::object({{"code", text(error.code)},
                                                         {"message", text(error.message)},
                                                         {"hint", text(error.hint)}})}});
}

JsonValue set_json(const DeviceSet& set) {
  JsonValue json = JsonValue::object({{"id", text(set.spec.id)},
                                      {"name", text(set.spec.name)},
                                      {"vendor", text(set.spec.vendor)},
                                      {"class", text(set.spec.device_class)},
                                      {"entries", integer(set.entries)},
                                      {"gpus", integer(set.gpus)},
                                      {"nodes", integer(set.nodes)},
                                      {"checked", text(set.spec.checked)},
                                      {"runs", JsonValue::boolean(has_backend(set.spec))},
                                      {"price_hour", number(set.price_hour)},
                                      {"note", text(set.spec.note)}});
  if (!set.report) {
    json.set("verdict", text("does_not_fit"));
    json.set("reason", text(set.reason));
    return json;
  }
  const PlanReport& report = *set.report;
  const Placement& chosen = report.chosen;
  const SpeedPoint* point = report.asked_point();
  const auto speed = [&](auto get) { return point == nullptr ? JsonValue() : number(get(*point)); };
  json.set("verdict", text(verdict_name(chosen.verdict)));
  json.set("mode", text(parallel_mode_name(chosen.split.mode)));
  json.set("per_device", JsonValue::object({{"total", integer(chosen.memory.device_bytes)},
                                            {"weights", integer(chosen.memory.weights)},
                                            {"fixed", integer(chosen.memory.fixed)},
                                            {"workspace", integer(chosen.memory.workspace)},
                                            {"kv_pool", integer(chosen.memory.pool)},
                                            {"reserve", integer(chosen.memory.reserve())},
                                            {"short", integer(chosen.short_bytes)}}));
  json.set("max_context", integer(chosen.max_context));
  json.set("max_batch", integer(chosen.max_batch));
  json.set("tok_s", speed([](const SpeedPoint& p) { return p.tokens_per_second; }));
  json.set("tok_s_user", speed([](const SpeedPoint& p) { return p.per_user(); }));
  json.set("watts", number(report.watts));
  json.set("joules_per_token", number(report.joules_per_token));
  json.set("launch", text(report.launch));
  return json;
}

JsonValue sets_json(const PlanModel& model, const PlanRequest& request,
                    const std::vector<DeviceSet>& sets) {
  JsonValue rows = JsonValue::array();
  for (const DeviceSet& set : sets) rows.push_back(set_json(set));
  return JsonValue::object({{"schema", text("nibble.plan.devices/1")},
                            {"model", text(model.name)},
                            {"context", integer(request.context)},
                            {"batch", integer(request.batch)},
                            {"devices", rows}});
}

JsonValue accuracy_json(const AccuracyReport& report) {
  JsonValue rows = JsonValue::array();
  for (const AccuracyRow& row : report.rows) {
    rows.push_back(JsonValue::object(
        {{"id", text(row.measurement->id)},
         {"measured", number(row.measurement->measured)},
         {"predicted", number(row.predicted)},
         {"ratio", number(row.ratio)},
         {"left_out", number(row.left_out)},
         {"left_out_ratio", number(row.left_out_ratio)},
         {"excluded", JsonValue::boolean(row.measurement->excluded)},
         {"used_to_set_constants", JsonValue::boolean(row.measurement->used_to_set_constants)},
         {"source", text(row.measurement->source)},
         {"note", text(row.measurement->note)}}));
  }
  return JsonValue::object({{"schema", text("nibble.plan.accuracy/1")},
                            {"median_error", number(report.median_error)},
                            {"median_error_all", number(report.median_error_all)},
                            {"worst_error", number(report.worst_error)},
                            {"left_out_median_error", number(report.left_out_median_error)},
                            {"left_out_worst_error", number(report.left_out_worst_error)},
                            {"rows", rows}});
}

}  // namespace nibble
