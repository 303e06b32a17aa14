#include "nibble/plan/bench_measurement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// A number in [low, high], or `other` when it is absent.
PlanResult<double> number(const JsonValue& json, std::string_view where, std::string_view name,
                          double low, double high, std::optional<double> other = std::nullopt) {
  const JsonValue* value = json.find(name);
  if (value == nullptr && other) return *other;
  const auto found = value == nullptr ? std::nullopt : value->as_number();
  if (found && *found >= low && *found <= high) return *found;
  return plan_error("bad_file",
                    fmt::format("{}: {} is {}, expected a number from {} to {}", where, name,
                                value == nullptr ? "missing" : to_json(*value, -1), low, high));
}

PlanResult<std::string> text(const JsonValue& json, std::string_view where, std::string_view name) {
  const JsonValue* value = json.find(name);
  const std::string* found = value == nullptr ? nullptr : value->as_string();
  if (found != nullptr && !found->empty()) return *found;
  return plan_error("bad_file", fmt::format("{}: {} is {}, expected a text", where, name,
                                            value == nullptr ? "missing" : to_json(*value, -1)));
}

std::string last_part(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

double step_seconds(const MeasuredSpeed::Row& row) {
  return row.batch * row.accept_length / row.tokens_per_second;
}

}  // namespace

std::optional<double> MeasuredSpeed::tokens_per_second(double batch) const {
  const auto above = std::find_if(rows.begin(), rows.end(),
                                  [batch](const Row& row) { return row.batch >= batch; });
  if (above == rows.end()) return std::nullopt;
  if (above->batch == batch) return above->tokens_per_second;
  if (above == rows.begin()) return std::nullopt;
  const Row& below = *std::prev(above);
  const double share = (batch - below.batch) / (above->batch - below.batch);
  const double seconds = std::lerp(step_seconds(below), step_seconds(*above), share);
  return batch * std::lerp(below.accept_length, above->accept_length, share) / seconds;
}

PlanResult<MeasuredSpeed> parse_bench(const JsonValue& json, std::string_view where) {
  MeasuredSpeed measured;
  measured.model = last_part(NIBBLE_TRY(text(json, where, "model")));
  measured.backend = NIBBLE_TRY(text(json, where, "backend"));
  measured.isl = NIBBLE_TRY(number(json, where, "input_len", 1, 1e9));
  measured.osl = NIBBLE_TRY(number(json, where, "output_len", 1, 1e9));
  measured.draft_tokens = static_cast<int>(NIBBLE_TRY(number(json, where, "num_drafts", 0, 8, 0)));
  const JsonValue* rows = json.find("rows");
  const JsonValue::Array* list = rows == nullptr ? nullptr : rows->as_array();
  if (list == nullptr || list->empty()) {
    return plan_error("bad_file",
                      fmt::format("{}: rows is {}, expected an array that is not empty", where,
                                  rows == nullptr ? "missing" : to_json(*rows, -1)));
  }
  for (size_t i = 0; i < list->size(); ++i) {
    const JsonValue& item = (*list)[i];
    const std::string place = fmt::format("{}: rows[{}]", where, i);
    MeasuredSpeed::Row row;
    const char* size = item.find("batch_size") != nullptr ? "batch_size" : "concurrency";
    row.batch = NIBBLE_TRY(number(item, place, size, 1, 1e6));
    row.tokens_per_second = NIBBLE_TRY(number(item, place, "output_tokens_per_second", 1e-6, 1e12));
    row.accept_length =
        NIBBLE_TRY(number(item, place, "acceptance_length", 1, measured.draft_tokens + 1, 1));
    measured.rows.push_back(row);
  }
  std::sort(measured.rows.begin(), measured.rows.end(),
            [](const auto& a, const auto& b) { return a.batch < b.batch; });
  for (size_t i = 1; i < measured.rows.size(); ++i) {
    if (measured.rows[i].batch != measured.rows[i - 1].batch) continue;
    return plan_error(
        "bad_file", fmt::format("{}: batch {} was measured twice", where, measured.rows[i].batch));
  }
  return measured;
}

}  // namespace nibble
