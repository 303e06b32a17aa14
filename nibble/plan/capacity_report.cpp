#include "nibble/plan/capacity_report.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble {
namespace {

std::string split_name(const Split& split) {
  return split.mode == ParallelMode::kAdp ? fmt::format("DP {} EP {}", split.dp, split.ep)
                                          : fmt::format("TP {} EP {}", split.tp, split.ep);
}

int64_t nodes_of(const CapacityReport& report, const CapacityRow& row) {
  const int64_t per_node = std::max<int64_t>(1, report.device.gpus_per_node);
  // A replica has whole nodes, or several share one.
  const auto nodes = [&](int64_t replicas, int64_t gpus) {
    if (gpus % per_node == 0) return replicas * (gpus / per_node);
    return (replicas * gpus + per_node - 1) / per_node;
  };
  return nodes(row.replicas, row.split.gpus) + nodes(row.prompt_replicas, report.prompt_split.gpus);
}

}  // namespace

std::string capacity_text(const CapacityReport& report, TableStyle style) {
  const PlanRequest& request = report.request;
  std::string text;
  if (style == TableStyle::kText) {
    text = fmt::format(
        "{}  {} on {}: {:g} requests/s of {} + {} tokens, at most {:g} ms a token{}\n\n",
        report.model->name, report.format_title, report.device.name,
        report.capacity.requests_per_second, request.isl, request.osl, report.capacity.max_tpot_ms,
        report.capacity.max_ttft_ms > 0
            ? fmt::format(" and {:g} ms to the first", report.capacity.max_ttft_ms)
            : "");
  }
  std::vector<std::vector<std::string>> rows = {{"routing", "replica", "devices", "batch",
                                                 "ms/token", "TTFT ms", "requests/s", "replicas",
                                                 "for prompts", "all devices", "nodes"}};
  for (const CapacityRow& row : report.rows) {
    std::vector<std::string> cells = {std::string(capacity_way_name(row.way)),
                                      split_name(row.split), std::to_string(row.split.gpus)};
    if (row.problem.empty()) {
      for (const std::string& cell :
           {std::to_string(row.batch), fmt::format("{:.1f}", row.tpot_ms),
            fmt::format("{:.0f}", row.ttft_ms), fmt::format("{:.2f}", row.rate),
            std::to_string(row.replicas), std::to_string(row.prompt_replicas),
            std::to_string(row.gpus), std::to_string(nodes_of(report, row))}) {
        cells.push_back(cell);
      }
    } else {
      cells.push_back(row.problem);
      cells.resize(rows.front().size());
    }
    rows.push_back(std::move(cells));
  }
  text += table_text(rows, style);
  if (style != TableStyle::kText) return text;
  text += "\n";
  for (const CapacityWay way :
       {CapacityWay::kRandom, CapacityWay::kCacheAware, CapacityWay::kDisaggregated}) {
    const CapacityRow* const best = report.best(way);
    text +=
        best == nullptr
            ? fmt::format("{}: not possible within the limits\n", capacity_way_name(way))
            : fmt::format("{}: {} devices in {} nodes, {:.0f} tokens/s each\n",
                          capacity_way_name(way), best->gpus, nodes_of(report, *best),
                          report.capacity.requests_per_second * static_cast<double>(request.osl) /
                              static_cast<double>(best->gpus));
  }
  for (const std::string& note : report.notes) text += fmt::format("note: {}\n", note);
  return text;
}

JsonValue capacity_json(const CapacityReport& report) {
  const auto text = [](std::string_view value) { return JsonValue::string(std::string(value)); };
  JsonValue rows = JsonValue::array();
  for (const CapacityRow& row : report.rows) {
    JsonValue json = JsonValue::object({{"routing", text(capacity_way_name(row.way))},
                                        {"mode", text(parallel_mode_name(row.split.mode))},
                                        {"replica_devices", JsonValue::integer(row.split.gpus)}});
    if (!row.problem.empty()) {
      json.set("problem", text(row.problem));
    } else {
      json.set("batch", JsonValue::integer(row.batch));
      json.set("tpot_ms", JsonValue::number(row.tpot_ms));
      json.set("ttft_ms", JsonValue::number(row.ttft_ms));
      json.set("transfer_ms", JsonValue::number(row.transfer_ms));
      json.set("requests_per_second", JsonValue::number(row.rate));
      json.set("replicas", JsonValue::integer(row.replicas));
      json.set("prompts_per_second", JsonValue::number(row.prompt_rate));
      json.set("prompt_replicas", JsonValue::integer(row.prompt_replicas));
      json.set("devices", JsonValue::integer(row.gpus));
      json.set("nodes", JsonValue::integer(nodes_of(report, row)));
    }
    rows.push_back(std::move(json));
  }
  JsonValue notes = JsonValue::array();
  for (const std::string& note : report.notes) notes.push_back(text(note));
  const CapacityRequest& capacity = report.capacity;
  return JsonValue::object(
      {{"schema", text("nibble.plan.capacity/1")},
       {"model", text(report.model->name)},
       {"format", text(report.format_title)},
       {"device", text(report.device.id)},
       {"request",
        JsonValue::object(
            {{"requests_per_second", JsonValue::number(capacity.requests_per_second)},
             {"isl", JsonValue::integer(report.request.isl)},
             {"osl", JsonValue::integer(report.request.osl)},
             {"max_tpot_ms", JsonValue::number(capacity.max_tpot_ms)},
             {"max_ttft_ms",
              capacity.max_ttft_ms > 0 ? JsonValue::number(capacity.max_ttft_ms) : JsonValue()},
             {"prefix_share", JsonValue::number(capacity.prefix_share)},
             {"load", JsonValue::number(capacity.load)}})},
       {"rows", std::move(rows)},
       {"notes", std::move(notes)}});
}

}  // namespace nibble
