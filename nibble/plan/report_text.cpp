#include "nibble/plan/report_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/text.h"

namespace nibble {
namespace {

double gb(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }
double gib(int64_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }
std::string count(int64_t value) {
  return format_count(static_cast<uint64_t>(std::max<int64_t>(0, value)));
}

// "671.03 B", "24.1 M".
std::string parameters_text(int64_t parameters, int decimals) {
  const auto value = static_cast<double>(parameters);
  return value >= 1e9 ? fmt::format("{:.{}f} B", value / 1e9, decimals)
                      : fmt::format("{:.1f} M", value / 1e6);
}

std::string split_text(const Placement& placement) {
  const Split& split = placement.split;
  if (split.gpus == 1) return "one device";
  switch (split.mode) {
    case ParallelMode::kTp:
      return fmt::format("TP {}, EP {}{}", split.tp, split.ep,
                         split.pp > 1 ? fmt::format(", PP {}", split.pp) : "");
    case ParallelMode::kAdp:
      return fmt::format("attention DP {}, EP {}", split.dp, split.ep);
    case ParallelMode::kLayer:
      return fmt::format("layers over {} devices", split.pp);
  }
  return "";
}

std::string head_text(const PlanReport& report) {
  const ModelWeights& weights = report.weights;
  std::string text =
      fmt::format("{}  {} parameters ({} read per token)", report.model->name,
                  parameters_text(weights.main_parameters(), 2),
                  parameters_text(weights.active_parameters(report.model->config), 1));
  if (const int64_t mtp = weights.mtp_block_parameters(); mtp > 0) {
    text += "  +MTP " + parameters_text(mtp, 1);
  }
  text += fmt::format("  [{}]\n", report.model->source);
  const int64_t file = weights.file_bytes();
  text +=
      fmt::format("format {}   file {}   {}, {:.1f} GiB each ({})   {}\n\n", report.format_title,
                  file >= 1'000'000'000 ? fmt::format("{:.2f} GB ({:.1f} GiB)", gb(file), gib(file))
                                        : format_bytes(static_cast<uint64_t>(file)),
                  hardware_title(*report.hardware), gib(report.device.memory_bytes),
                  bytes_source_name(report.device.bytes_source), split_text(report.chosen));
  return text;
}

std::string_view storage_name(Storage storage) {
  switch (storage) {
    case Storage::kBf16:
      return "BF16";
    case Storage::kF32:
      return "F32";
    case Storage::kFp8:
      return "FP8";
    case Storage::kNvfp4:
      return "NVFP4";
    case Storage::kGguf:
      return "GGUF";
  }
  return "?";
}

std::string classes_text(const ModelWeights& weights) {
  std::vector<std::vector<std::string>> rows = {{"class", "parameters", "bytes", "GB", "mostly"}};
  for (const bool mtp : {false, true}) {
    for (const WeightKind kind : kAllWeightKinds) {
      const WeightCell& cell = weights.cell(kind, mtp);
      if (cell.bytes == 0) continue;
      rows.push_back({(mtp ? "mtp_" : "") + std::string(weight_kind_name(kind)),
                      count(cell.parameters), count(cell.bytes),
                      fmt::format("{:.3f}", gb(cell.bytes)),
                      std::string(storage_name(cell.storage))});
    }
  }
  return table_text(rows, TableStyle::kText) + "\n";
}

std::string memory_text(const PlanReport& report) {
  const RankMemory& memory = report.chosen.memory;
  const auto line = [&](std::string_view name, int64_t bytes) {
    return fmt::format(
        "{:<16} {:>9.2f} {:>8.1f}%\n", name, gb(bytes),
        100.0 * static_cast<double>(bytes) / static_cast<double>(memory.device_bytes));
  };
  std::string text = fmt::format("{:<16} {:>9} {:>9}\n",
                                 report.device.is_cpu() ? "in RAM" : "per device", "GB", "share");
  text += line("weights", memory.weights);
  text += line("fixed", memory.fixed);
  text += line("workspace", memory.workspace);
  text += line(fmt::format("KV pool ({:.2f})", report.request.kv_fraction), memory.pool);
  text += line("reserve", memory.reserve());
  text +=
      fmt::format("KV: {} bytes/token {}, {} tokens per device\n", count(memory.kv_bytes_per_token),
                  kv_format_name(report.kv), count(memory.tokens));
  if (const auto& offload = report.chosen.offload) {
    text += fmt::format(
        "experts: {:.1f} GB on devices, {:.1f} GB in RAM, {:.1f} GB on SSD, "
        "{} bytes each\n",
        gb(offload->gpu), gb(offload->ram), gb(offload->ssd), count(offload->expert_bytes));
  }
  return text;
}

std::string verdict_text(const PlanReport& report) {
  const Placement& chosen = report.chosen;
  if (chosen.verdict != Verdict::kDoesNotFit) {
    return fmt::format("{:<7} max context {}   max batch {} at {}\n", verdict_name(chosen.verdict),
                       count(chosen.max_context), count(chosen.max_batch),
                       count(report.request.context));
  }
  std::string text = fmt::format("does not fit: {:.2f} GB short {}\n", gb(chosen.short_bytes),
                                 chosen.offload && chosen.offload->short_bytes > 0
                                     ? "for experts in all tiers together"
                                     : "on each device");
  for (const std::string& change : report.changes) text += fmt::format("fits with: {}\n", change);
  return text;
}

std::string range_of(double value) {
  return fmt::format("{:.0f}..{:.0f}", value * kRangeLow, value * kRangeHigh);
}

std::string known(const std::optional<double>& value) {
  return value ? fmt::format("{:.2f}", *value) : "?";
}

std::string speed_text(const PlanReport& report) {
  const Placement& chosen = report.chosen;
  if (chosen.points.empty()) return "";
  const bool measured = chosen.points.front().measured;
  std::string text =
      fmt::format("\n{:>6} {:>10} {:>9} {:>9}   ", "batch", "tok/s", "per user", "step ms");
  text += measured ? "(measured by nibble bench)\n"
                   : fmt::format("{:<14} (estimate, x{} to x{})\n", "range tok/s", kRangeLow,
                                 kRangeHigh);
  for (const SpeedPoint& point : chosen.points) {
    if (measured) {
      text += fmt::format("{:>6} {:>10.1f} {:>9.1f} {:>9.2f}\n", point.batch,
                          point.tokens_per_second, point.per_user(), point.step.total());
      continue;
    }
    text += fmt::format(
        "{:>6} {:>10.1f} {:>9.1f} {:>9.2f}   {:<14} mem {} comp {} comm {} fixed {:.2f} prefill "
        "{}\n",
        point.batch, point.tokens_per_second, point.per_user(), point.step.total(),
        range_of(point.tokens_per_second), known(point.step.mem), known(point.step.comp),
        known(point.step.comm), point.step.fixed, known(point.step.prefill));
  }
  if (report.ttft_ms) {
    text += fmt::format("first token of a {}-token prompt: {:.0f} ms (estimate)\n",
                        count(report.ttft_prompt), *report.ttft_ms);
  }
  return text;
}

std::string cost_text(const PlanReport& report) {
  std::string text;
  if (report.load_s) text += fmt::format("load: {}   ", format_duration(*report.load_s));
  if (report.download_s)
    text += fmt::format("download: {}   ", format_duration(*report.download_s));
  if (report.watts) text += fmt::format("power: {:.0f} W (0.7 of the maximum)   ", *report.watts);
  if (report.joules_per_token) {
    text += fmt::format("energy: {:.1f} kWh per million tokens at batch {}   ",
                        *report.joules_per_token / 3.6, report.request.batch);
  }
  if (report.price_per_mtok) {
    text += fmt::format("price: {:.2f} per million tokens at batch {}", *report.price_per_mtok,
                        report.request.batch);
  }
  while (text.ends_with(' ')) text.pop_back();
  return text.empty() ? text : text + "\n";
}

std::string other_text(const PlanReport& report) {
  std::string text;
  for (const Placement& other : report.alternatives) {
    text += fmt::format(
        "other: {}: {}, weights {:.2f} GB per device, {} tokens per device, "
        "max batch {}",
        split_text(other), verdict_name(other.verdict), gb(other.memory.weights),
        count(other.memory.tokens), count(other.max_batch));
    for (const SpeedPoint& point : other.points) {
      if (point.batch == report.request.batch) {
        text += fmt::format(", {:.1f} tok/s at batch {}", point.tokens_per_second, point.batch);
      }
    }
    if (other.short_bytes > 0) text += fmt::format(", {:.2f} GB short", gb(other.short_bytes));
    text += "\n";
  }
  return text;
}

bool is_number(const std::string& cell) {
  if (cell.empty() || cell == "?") return true;
  return cell.find_first_not_of("0123456789.,+-%x") == std::string::npos &&
         cell.find_first_of("0123456789") != std::string::npos;
}

std::string csv_cell(const std::string& cell) {
  if (cell.find_first_of(",\"\n") == std::string::npos) return cell;
  std::string quoted = "\"";
  for (const char c : cell) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

// The catalogue's words on its own figures.
std::string checked_text(const DeviceSpec& spec) {
  return spec.is_checked() ? spec.checked : "unchecked";
}

}  // namespace

std::string plan_text(const PlanReport& report, bool verbose) {
  std::string text = head_text(report) + (verbose ? classes_text(report.weights) : "") +
                     memory_text(report) + verdict_text(report) + speed_text(report) +
                     cost_text(report) + other_text(report);
  for (const std::string& step : report.steps_before) text += fmt::format("first:  {}\n", step);
  if (!report.launch.empty()) text += fmt::format("launch: {}\n", report.launch);
  for (const std::string& line : report.assumptions) text += fmt::format("assumed: {}\n", line);
  for (const std::string& line : report.notes) text += fmt::format("note: {}\n", line);
  return text;
}

std::string table_text(const std::vector<std::vector<std::string>>& rows, TableStyle style) {
  std::string text;
  if (rows.empty()) return text;
  const size_t columns = rows.front().size();
  std::vector<size_t> widths(columns, 0);
  std::vector<bool> right(columns, true);
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t c = 0; c < columns; ++c) {
      widths[c] = std::max(widths[c], rows[r][c].size());
      if (r > 0 && !is_number(rows[r][c])) right[c] = false;
    }
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < columns; ++c) {
      const std::string& cell = rows[r][c];
      if (style == TableStyle::kCsv) {
        line += (c == 0 ? "" : ",") + csv_cell(cell);
      } else if (style == TableStyle::kMarkdown) {
        line += "| " + cell + " ";
      } else {
        line += c == 0 ? "" : "  ";
        line += right[c] ? fmt::format("{:>{}}", cell, widths[c])
                         : fmt::format("{:<{}}", cell, widths[c]);
      }
    }
    if (style == TableStyle::kMarkdown) line += "|";
    while (style == TableStyle::kText && line.ends_with(' ')) line.pop_back();
    text += line + "\n";
    if (r == 0 && style == TableStyle::kMarkdown) {
      for (size_t c = 0; c < columns; ++c) text += right[c] ? "|--:" : "|---";
      text += "|\n";
    }
  }
  return text;
}

std::string sets_text(const std::vector<DeviceSet>& sets, TableStyle style) {
  std::vector<std::vector<std::string>> rows = {
      {"device", "GPUs", "nodes", "GiB each", "verdict", "split", "weights GB", "max context",
       "max batch", "tok/s", "per user", "kW", "kWh/Mtok", "price/h", "nibble", "figures"}};
  for (const DeviceSet& set : sets) {
    const std::string runs = has_backend(set.spec) ? "runs" : "no backend";
    if (!set.report) {
      rows.push_back({set.spec.name, "", "", "", "not possible", "", "", "", "", "", "", "", "", "",
                      runs, checked_text(set.spec)});
      continue;
    }
    const PlanReport& report = *set.report;
    const Placement& chosen = report.chosen;
    const SpeedPoint* point = report.asked_point();
    const auto maybe = [](bool is_known, double value, int decimals) {
      return is_known ? fmt::format("{:.{}f}", value, decimals) : std::string("?");
    };
    rows.push_back(
        {set_title(set), std::to_string(set.gpus), std::to_string(set.nodes),
         fmt::format("{:.1f}", gib(report.device.memory_bytes)),
         std::string(verdict_name(chosen.verdict)), split_text(chosen),
         fmt::format("{:.1f}", gb(chosen.memory.weights)), count(chosen.max_context),
         count(chosen.max_batch),
         maybe(point != nullptr, point == nullptr ? 0 : point->tokens_per_second, 1),
         maybe(point != nullptr, point == nullptr ? 0 : point->per_user(), 1),
         maybe(report.watts.has_value(), report.watts.value_or(0) / 1e3, 2),
         maybe(report.joules_per_token.has_value(), report.joules_per_token.value_or(0) / 3.6, 1),
         maybe(set.price_hour.has_value(), set.price_hour.value_or(0), 2), runs,
         checked_text(set.spec)});
  }
  return table_text(rows, style);
}

std::string catalogue_text(const Catalogue& catalogue, TableStyle style) {
  std::vector<std::vector<std::string>> rows = {{"id", "name", "class", "GPUs", "GB",
                                                 "MiB reported", "GB/s", "BF16", "FP8", "FP4",
                                                 "link GB/s", "W", "figures"}};
  const auto figure = [](const std::optional<double>& value) {
    return value ? fmt::format("{}", *value) : std::string("?");
  };
  for (const DeviceSpec& spec : catalogue.devices()) {
    rows.push_back({spec.id, spec.name, spec.device_class, std::to_string(spec.devices),
                    figure(spec.memory_gb),
                    spec.memory_mib_reported ? std::to_string(*spec.memory_mib_reported) : "?",
                    figure(spec.mem_bw_gbs), figure(spec.bf16_dense_tflops),
                    figure(spec.fp8_dense_tflops), figure(spec.fp4_dense_tflops),
                    figure(spec.link_bidir_gbs), figure(spec.tdp_w), checked_text(spec)});
  }
  return table_text(rows, style);
}

std::string formats_text(const std::vector<FormatRow>& table, TableStyle style) {
  std::vector<std::vector<std::string>> rows = {{"format", "bits", "file GB", "resident GB",
                                                 "KV GB", "total GB", "smallest set", "verdict",
                                                 "size from"}};
  for (const FormatRow& row : table) {
    const int64_t resident = row.weights.resident_bytes(false);
    rows.push_back({row.format.id,
                    fmt::format("{:.3f}", static_cast<double>(resident) * 8 /
                                              static_cast<double>(row.weights.main_parameters())),
                    fmt::format("{:.2f}", gb(row.weights.file_bytes())),
                    fmt::format("{:.2f}", gb(resident)), fmt::format("{:.2f}", row.kv_gb),
                    fmt::format("{:.2f}", gb(resident) + row.kv_gb), row.smallest_set,
                    std::string(verdict_name(row.verdict)),
                    row.format.is_gguf() ? row.format.origin : "shapes"});
  }
  return table_text(rows, style);
}

std::string page_text(const ModelConfig& config, const PageModel& model, TableStyle style) {
  std::vector<std::vector<std::string>> rows = {
      {"level", "page bits", "page file GB", "page VRAM GB", "page + context GB", "page recommends",
       "true bits", "true file GB", "true + context GB", "size from"}};
  const auto context_gb = static_cast<double>(kv_bytes_per_token(config, KvFormat::kBf16, false)) *
                          static_cast<double>(config.max_position_embeddings) / 1e9;
  for (const PageLevel& level : page_levels()) {
    const PageRow row = page_row(model, level);
    const auto format = find_format(level.name);
    if (!format) continue;
    const double file = gb(gguf_weights(config, format->gguf_bits).file_bytes());
    rows.push_back({std::string(row.level), fmt::format("{:.1f}", row.bits),
                    page_number(row.file_gb, 2), page_number(row.vram_gb, 1),
                    page_number(row.context_gb, 1), fmt::format("{}+", page_recommended_gb(row)),
                    fmt::format("{:.3f}", format->gguf_bits), fmt::format("{:.2f}", file),
                    fmt::format("{:.1f}", file + context_gb), format->origin});
  }
  std::string text = table_text(rows, style);
  if (style == TableStyle::kCsv) return text;
  std::vector<std::vector<std::string>> why = {{"the page says", "fact"}};
  for (const PageDifference& d : page_differences(config, model)) why.push_back({d.page, d.fact});
  return text + "\n" + table_text(why, style);
}

std::string accuracy_text(const AccuracyReport& report, TableStyle style) {
  std::vector<std::vector<std::string>> rows = {{"measurement", "measured", "predicted", "ratio",
                                                 "without the row", "ratio", "set a constant",
                                                 "source"}};
  for (const AccuracyRow& row : report.rows) {
    const Measurement& m = *row.measurement;
    rows.push_back({m.id + (m.excluded ? " (outlier)" : ""), fmt::format("{:.2f}", m.measured),
                    fmt::format("{:.2f}", row.predicted), fmt::format("{:.3f}", row.ratio),
                    fmt::format("{:.2f}", row.left_out), fmt::format("{:.3f}", row.left_out_ratio),
                    m.used_to_set_constants ? "yes" : "no", m.source});
  }
  std::string text = table_text(rows, style);
  if (style == TableStyle::kCsv) return text;
  return text +
         fmt::format(
             "\nmedian ratio error {:.3f} (worst {:.3f}) without the outlier, {:.3f} with it\n"
             "leave-one-out: median {:.3f} (worst {:.3f}), constants fitted to the other rows "
             "from a neutral start\n",
             report.median_error, report.worst_error, report.median_error_all,
             report.left_out_median_error, report.left_out_worst_error);
}

}  // namespace nibble
