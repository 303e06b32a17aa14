// Published values as a baseline: a table without samples.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/eval/report.h"

namespace nibble {

Result<PublishedTable> parse_published(const std::string& text, const std::string& where) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const auto bad = [&](std::string_view what) {
    return corrupt(fmt::format("{}: {}", where, what));
  };
  if (!json.is_object() || json.value("schema", "") != "nibble.eval.published/1") {
    return bad("expected a JSON object of schema nibble.eval.published/1");
  }
  PublishedTable table;
  try {
    table.source = json.value("source", "");
    for (const auto& one : json.at("rows")) {
      PublishedRow row;
      row.name = one.at("name").get<std::string>();
      for (const auto& [task, value] : one.at("values").items()) {
        row.values[task] = value.get<double>();
        const auto& unit = one.at("unit");
        row.units[task] = unit.is_number() ? unit.get<double>() : unit.at(task).get<double>();
      }
      table.rows.push_back(std::move(row));
    }
    const std::string baseline = json.at("baseline").get<std::string>();
    while (table.baseline < table.rows.size() && table.rows[table.baseline].name != baseline) {
      ++table.baseline;
    }
    if (table.baseline == table.rows.size()) {
      return bad(fmt::format("no row is named '{}' as the baseline is", baseline));
    }
  } catch (const nlohmann::json::exception& error) {
    return bad(error.what());
  }
  return table;
}

}  // namespace nibble
