#include "nibble/cli/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double deviation(const std::vector<double>& values) {
  const double middle = mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - middle) * (value - middle);
  return values.empty() ? 0 : std::sqrt(sum / static_cast<double>(values.size()));
}

bool is_wanted(const LoadSummary& s, const LoadMetric& metric) {
  const auto& names = s.percentile_metrics;
  return names.empty() || std::find(names.begin(), names.end(), metric.name) != names.end();
}

// Requests that ran at once, on average: the sum of their latencies over the whole time. With a
// limit that was reached it is the limit.
double mean_concurrency(const LoadSummary& s) {
  if (s.max_concurrency > 0 && s.peak_concurrency == s.max_concurrency) {
    return static_cast<double>(s.max_concurrency);
  }
  double sum = 0;
  for (const double latency : s.metrics[3].values) sum += latency / 1e3;
  return std::max(1.0, sum / s.duration);
}

std::string row(std::string_view label, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", label, value);
}
std::string row(std::string_view label, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", label, value);
}

}  // namespace

double percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

std::string load_table(const LoadSummary& s) {
  std::string out = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  out += row("Successful requests:", s.completed);
  out += row("Failed requests:", s.failed);
  if (s.max_concurrency > 0) out += row("Maximum request concurrency:", s.max_concurrency);
  if (s.request_rate > 0) out += row("Request rate configured (RPS):", s.request_rate);
  out += row("Benchmark duration (s):", s.duration);
  out += row("Total input tokens:", s.input_tokens);
  out += row("Total generated tokens:", s.output_tokens);
  out += row("Request throughput (req/s):", static_cast<double>(s.completed) / s.duration);
  if (s.has_goodput) {
    out += row("Request goodput (req/s):", static_cast<double>(s.good) / s.duration);
  }
  out += row("Output token throughput (tok/s):", static_cast<double>(s.output_tokens) / s.duration);
  out += row("Peak output token throughput (tok/s):", s.peak_output);
  out += row("Peak concurrent requests:", s.peak_concurrency);
  out += row("Total token throughput (tok/s):",
             static_cast<double>(s.input_tokens + s.output_tokens) / s.duration);
  for (const LoadMetric& metric : s.metrics) {
    if (!is_wanted(s, metric)) continue;
    out += fmt::format("{:-^50}\n", metric.heading);
    out += row(fmt::format("Mean {} (ms):", metric.label), mean(metric.values));
    out += row(fmt::format("Median {} (ms):", metric.label), percentile(metric.values, 50));
    for (const double p : s.percentiles) {
      out += row(fmt::format("P{} {} (ms):", p, metric.label), percentile(metric.values, p));
    }
  }
  if (s.acceptance_length) {
    out += fmt::format("{:-^50}\n", "Speculative Decoding");
    out += row("Acceptance rate (%):", 100 * s.accepted / std::max(1.0, s.draft_tokens));
    out += row("Acceptance length:", *s.acceptance_length);
    out += row("Drafts:", static_cast<int64_t>(s.drafts));
    out += row("Draft tokens:", static_cast<int64_t>(s.draft_tokens));
    out += row("Accepted tokens:", static_cast<int64_t>(s.accepted));
    if (!s.accepted_at.empty()) out += "Per-position acceptance (%):\n";
    for (size_t i = 0; i < s.accepted_at.size(); ++i) {
      out += row(fmt::format("  Position {}:", i), 100 * s.accepted_at[i] / s.drafts);
    }
  }
  return out + std::string(50, '=') + "\n";
}

std::string load_table_trtllm(const LoadSummary& s) {
  const auto per_second = [&](int64_t count) { return static_cast<double>(count) / s.duration; };
  const double users = mean_concurrency(s);
  std::string out(59, '=');
  out += "\n= PERFORMANCE OVERVIEW\n" + std::string(59, '=') + "\n";
  const auto line = [&](std::string_view label, double value) {
    out += fmt::format("{:<57} {:.4f}\n", label, value);
  };
  line("Request Throughput (req/sec):", per_second(s.completed));
  line("Total Output Throughput (tokens/sec):", per_second(s.output_tokens));
  line("Total Token Throughput (tokens/sec):", per_second(s.input_tokens + s.output_tokens));
  line("Total Latency (ms):", 1e3 * s.duration);
  line("Average request latency (ms):", mean(s.metrics[3].values));
  line("Per User Output Throughput [w/ ctx] (tps/user):", per_second(s.output_tokens) / users);
  line("Per GPU Output Throughput (tps/gpu):", per_second(s.output_tokens));
  std::vector<double> user_speed;  // tokens a second of one request, behind its first
  for (const double tpot : s.metrics[1].values) {
    if (tpot > 0) user_speed.push_back(1e3 / tpot);
  }
  std::sort(user_speed.begin(), user_speed.end());
  const auto block = [&](std::string_view name, const std::vector<double>& values) {
    out += fmt::format("\n-- {} Breakdown\n\n", name);
    const auto entry = [&](std::string_view which, double value) {
      line(fmt::format("[{}] {}", which, name), value);
    };
    entry("MINIMUM", percentile(values, 0));
    entry("MAXIMUM", percentile(values, 100));
    entry("AVERAGE", mean(values));
    for (const int p : {50, 90, 95, 99}) entry(fmt::format("P{}", p), percentile(values, p));
  };
  block("Time-to-First-Token [TTFT] (ms)", s.metrics[0].values);
  block("Time-per-Output-Token [TPOT] (ms)", s.metrics[1].values);
  block("Request Latency (ms)", s.metrics[3].values);
  block("Per-User Output Speed (tps/user)", user_speed);
  return out + std::string(59, '=') + "\n";
}

std::string load_json(const LoadSummary& s) {
  Json json = {{"duration", s.duration},
               {"completed", s.completed},
               {"failed", s.failed},
               {"total_input_tokens", s.input_tokens},
               {"total_output_tokens", s.output_tokens},
               {"request_throughput", static_cast<double>(s.completed) / s.duration},
               {"request_goodput",
                !s.has_goodput ? Json(nullptr) : Json(static_cast<double>(s.good) / s.duration)},
               {"output_throughput", static_cast<double>(s.output_tokens) / s.duration},
               {"total_token_throughput",
                static_cast<double>(s.input_tokens + s.output_tokens) / s.duration},
               {"max_concurrency", s.max_concurrency},
               {"peak_concurrent_requests", s.peak_concurrency}};
  const auto completed = static_cast<double>(std::max<int64_t>(s.completed, 1));
  json["model"] = s.model;
  json["backend"] = s.backend.empty() ? Json(nullptr) : Json(s.backend);
  json["input_len"] = static_cast<double>(s.input_tokens) / completed;
  json["output_len"] = static_cast<double>(s.output_tokens) / completed;
  json["num_drafts"] = s.num_drafts;
  json["rows"] = {{{"concurrency", mean_concurrency(s)},
                   {"output_tokens_per_second", static_cast<double>(s.output_tokens) / s.duration},
                   {"acceptance_length", s.acceptance_length.value_or(1)}}};
  for (const LoadMetric& metric : s.metrics) {
    const std::string name = std::string(metric.name) + "_ms";
    json["mean_" + name] = mean(metric.values);
    json["median_" + name] = percentile(metric.values, 50);
    json["std_" + name] = deviation(metric.values);
    for (const double p : s.percentiles) {
      json[fmt::format("p{}_{}", p, name)] = percentile(metric.values, p);
    }
  }
  json["spec_decode_acceptance_length"] =
      s.acceptance_length ? Json(*s.acceptance_length) : Json(nullptr);
  return json.dump(2) + "\n";
}

// One line of names, one of values.
std::string load_csv(const LoadSummary& summary) {
  const Json values = Json::parse(load_json(summary));
  std::string names;
  std::string line;
  for (const auto& [name, value] : values.items()) {
    if (value.is_structured()) continue;
    names += (names.empty() ? "" : ",") + name;
    line += (line.empty() ? "" : ",") + (value.is_null() ? "" : value.dump());
  }
  return names + "\n" + line + "\n";
}

std::string load_svg(const LoadSummary& summary) {
  constexpr int kWidth = 360;
  constexpr int kHeight = 220;
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"520\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"760\" height=\"520\" "
      "fill=\"white\"/>\n";
  for (size_t i = 0; i < 4; ++i) {
    const LoadMetric& metric = summary.metrics[i];
    const double x0 = 50 + static_cast<double>(i % 2) * 370;
    const double y0 = i < 2 ? 40 : 290;
    const double right = std::max(1e-9, percentile(metric.values, 99.5));
    const double width = kWidth - 70;
    const double height = kHeight - 50;
    out += fmt::format("<text x=\"{}\" y=\"{}\">{} (ms)</text>\n", x0, y0 - 10, metric.heading);
    for (int k = 0; k <= 4; ++k) {
      const double y = y0 + height * (1 - 0.25 * k);
      const double x = x0 + width * 0.25 * k;
      out += fmt::format(
          "<path d=\"M{:.1f} {:.1f}h{:.1f}\" stroke=\"#ddd\"/><text x=\"{:.1f}\" y=\"{:.1f}\" "
          "text-anchor=\"end\">{}%</text>\n",
          x0, y, width, x0 - 6, y + 4, 25 * k);
      out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.3g}</text>\n",
                         x, y0 + height + 16, right * 0.25 * k);
    }
    if (metric.values.empty()) continue;
    out += "<polyline fill=\"none\" stroke=\"#2f6f5e\" stroke-width=\"2\" points=\"";
    for (int p = 0; p <= 199; ++p) {
      const double share = p / 200.0;
      out +=
          fmt::format("{:.1f},{:.1f} ", x0 + width * percentile(metric.values, 100 * share) / right,
                      y0 + height * (1 - share));
    }
    out += "\"/>\n";
  }
  return out + "</svg>\n";
}

}  // namespace nibble
