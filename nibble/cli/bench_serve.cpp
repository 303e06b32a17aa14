// nibble bench serve: load for any server with OpenAI's API, and what its users would have felt.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/cli/bench_command.h"
#include "nibble/cli/cli_common.h"
#include "nibble/server/load_generator.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string base_url = "http://127.0.0.1:8000";
  std::string endpoint = "/v1/completions";
  std::string model;
  std::string api_key;
  std::string dataset = "random";
  std::string dataset_file;
  int64_t random_input_len = 256;
  int64_t random_output_len = 128;
  double random_range_ratio = 0;
  int64_t num_prompts = 100;
  int64_t num_warmups = 0;
  double request_rate = 0;  // a second; 0: all at once
  double burstiness = 1;
  int64_t max_concurrency = 0;
  bool ignore_eos = false;
  double temperature = 0;
  int64_t seed = 0;
  std::vector<std::string> goodput;
  std::vector<double> percentiles = {50, 90, 99};
  std::string format = "table";
  std::string save_result;
  std::string save_svg;
};

// One of the four times, in milliseconds.
struct Metric {
  const char* name;     // "ttft"
  const char* heading;  // of its part of the table
  const char* label;    // "TTFT"
  std::vector<double> values;
};

double percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

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

struct Summary {
  double duration = 0;
  int64_t completed = 0;
  int64_t failed = 0;
  int64_t good = 0;
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  double peak_output = 0;  // tokens in the busiest second
  int64_t peak_concurrency = 0;
  std::vector<Metric> metrics;
  std::optional<double> acceptance_length;
  double drafts = 0;
  double draft_tokens = 0;
  double accepted = 0;
};

class Bench {
 public:
  explicit Bench(Options options) : o_(std::move(options)) {}

  Status run(int* exit_code);

 private:
  Result<std::vector<LoadRequest>> make_requests();
  Result<std::vector<Json>> read_dataset(std::mt19937_64& rng);
  std::map<std::string, double> spec_decode() const;
  Summary summarize(const std::vector<LoadResult>& results, double duration) const;
  bool is_good(const LoadResult& result, double tpot) const;
  std::string table(const Summary& summary) const;
  std::string json(const Summary& summary) const;
  std::string csv(const Summary& summary) const;
  static std::string svg(const Summary& summary);
  static Status save(const std::string& path, const std::string& text);

  Options o_;
  LoadTarget target_;
  std::map<std::string, double> limits_;  // "ttft" -> ms
};

Json token_prompt(int64_t length, std::mt19937_64& rng) {
  // Ids that every vocabulary has, and that are no special tokens in DeepSeek's.
  std::uniform_int_distribution<int> draw(300, 2300);
  Json ids = Json::array();
  for (int64_t i = 0; i < length; ++i) ids.push_back(draw(rng));
  return ids;
}

Result<std::vector<Json>> Bench::read_dataset(std::mt19937_64& rng) {
  const bool chat = o_.endpoint.ends_with("/chat/completions");
  std::vector<Json> bodies;
  const auto body_of = [&](Json prompt) {
    Json body = Json::object();
    if (!chat || prompt.is_array()) {
      body["prompt"] = std::move(prompt);
    } else {
      body["messages"] = {{{"role", "user"}, {"content", std::move(prompt)}}};
    }
    return body;
  };
  if (o_.dataset == "random") {
    if (chat) {
      return invalid_argument(
          "--dataset random sends token ids, which /v1/chat/completions does not take; use "
          "/v1/completions, or --dataset jsonl");
    }
    const auto length = [&](int64_t middle) {
      const double spread = o_.random_range_ratio * static_cast<double>(middle);
      std::uniform_real_distribution<double> draw(static_cast<double>(middle) - spread,
                                                  static_cast<double>(middle) + spread);
      return std::max<int64_t>(1, std::llround(draw(rng)));
    };
    for (int64_t i = 0; i < o_.num_prompts; ++i) {
      Json body = body_of(token_prompt(length(o_.random_input_len), rng));
      body["max_tokens"] = length(o_.random_output_len);
      bodies.push_back(std::move(body));
    }
    return bodies;
  }
  const std::string text = NIBBLE_TRY(read_text_file(o_.dataset_file));
  std::vector<Json> rows;
  if (o_.dataset == "sharegpt") {
    const Json file = Json::parse(text, nullptr, false);
    if (!file.is_array()) return invalid_argument(o_.dataset_file + " is no JSON array");
    for (const Json& entry : file) {
      if (entry.is_object() && entry.contains("conversations") &&
          entry["conversations"].is_array() && !entry["conversations"].empty()) {
        rows.push_back({{"prompt", entry["conversations"][0].value("value", "")}});
      }
    }
  } else {
    std::istringstream lines(text);
    std::string line;
    for (int number = 1; std::getline(lines, line); ++number) {
      if (line.empty()) continue;
      Json row = Json::parse(line, nullptr, false);
      if (!row.is_object() || (!row.contains("prompt") && !row.contains("messages"))) {
        return invalid_argument(fmt::format("{}:{} is no JSON object with prompt or messages",
                                            o_.dataset_file, number));
      }
      rows.push_back(std::move(row));
    }
  }
  if (rows.empty()) return invalid_argument(o_.dataset_file + " holds no prompt");
  for (int64_t i = 0; i < o_.num_prompts; ++i) {
    const Json& row = rows[static_cast<size_t>(i) % rows.size()];
    Json body =
        row.contains("messages") ? Json{{"messages", row["messages"]}} : body_of(row["prompt"]);
    if (row.contains("tools")) body["tools"] = row["tools"];
    body["max_tokens"] = row.value("output_len", row.value("max_tokens", o_.random_output_len));
    if (row.contains("timestamp") && row["timestamp"].is_number()) {
      body["timestamp"] = row["timestamp"];
    }
    bodies.push_back(std::move(body));
  }
  return bodies;
}

Result<std::vector<LoadRequest>> Bench::make_requests() {
  std::mt19937_64 rng(static_cast<uint64_t>(o_.seed));
  std::vector<Json> bodies = NIBBLE_TRY(read_dataset(rng));
  std::vector<LoadRequest> requests;
  double at = 0;
  std::gamma_distribution<double> gap(
      o_.burstiness, o_.request_rate > 0 ? 1 / (o_.request_rate * o_.burstiness) : 1);
  for (Json& body : bodies) {
    LoadRequest request;
    if (body.contains("timestamp")) {
      request.start_second = body["timestamp"].get<double>();
      body.erase("timestamp");
    } else if (o_.request_rate > 0) {
      request.start_second = at;
      at += gap(rng);
    }
    if (!o_.model.empty()) body["model"] = o_.model;
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    body["temperature"] = o_.temperature;
    if (o_.ignore_eos) {
      body["ignore_eos"] = true;
      body["min_tokens"] = body["max_tokens"];
    }
    request.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    requests.push_back(std::move(request));
  }
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.start_second < b.start_second; });
  return requests;
}

std::map<std::string, double> Bench::spec_decode() const {
  std::map<std::string, double> values;
  const auto page = http_get(target_, "/metrics");
  if (!page) return values;  // other servers may have none
  std::istringstream lines(*page);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with("vllm:spec_decode_num_")) continue;
    const size_t space = line.rfind(' ');
    values[line.substr(0, line.find('{'))] += std::strtod(line.c_str() + space, nullptr);
  }
  return values;
}

bool Bench::is_good(const LoadResult& result, double tpot) const {
  const std::map<std::string, double> values = {
      {"ttft", 1e3 * result.time_to_first_token}, {"tpot", tpot}, {"e2el", 1e3 * result.latency}};
  return std::all_of(limits_.begin(), limits_.end(),
                     [&](const auto& limit) { return values.at(limit.first) <= limit.second; });
}

Summary Bench::summarize(const std::vector<LoadResult>& results, double duration) const {
  Summary summary;
  summary.duration = duration;
  summary.metrics = {{"ttft", "Time to First Token", "TTFT", {}},
                     {"tpot", "Time per Output Token (excl. 1st token)", "TPOT", {}},
                     {"itl", "Inter-token Latency", "ITL", {}},
                     {"e2el", "End-to-end Latency", "E2EL", {}}};
  std::vector<std::pair<double, int>> changes;
  std::map<int64_t, double> per_second;
  for (const LoadResult& result : results) {
    if (!result.success) {
      ++summary.failed;
      continue;
    }
    ++summary.completed;
    summary.input_tokens += result.prompt_tokens;
    summary.output_tokens += result.output_tokens;
    const double rest = result.latency - result.time_to_first_token;
    const auto later = static_cast<double>(result.output_tokens - 1);
    const double tpot = later > 0 ? 1e3 * rest / later : 0;
    summary.metrics[0].values.push_back(1e3 * result.time_to_first_token);
    if (later > 0) summary.metrics[1].values.push_back(tpot);
    summary.metrics[3].values.push_back(1e3 * result.latency);
    double at = result.start + result.time_to_first_token;
    const double share = static_cast<double>(result.output_tokens) /
                         static_cast<double>(result.gaps.size() + 1);  // tokens of an event
    per_second[static_cast<int64_t>(at)] += share;
    for (const double gap : result.gaps) {
      summary.metrics[2].values.push_back(1e3 * gap);
      at += gap;
      per_second[static_cast<int64_t>(at)] += share;
    }
    if (is_good(result, tpot)) ++summary.good;
    changes.emplace_back(result.start, 1);
    changes.emplace_back(result.start + result.latency, -1);
  }
  std::sort(changes.begin(), changes.end());
  int64_t open = 0;
  for (const auto& [at, change] : changes) {
    open += change;
    summary.peak_concurrency = std::max(summary.peak_concurrency, open);
  }
  for (const auto& [second, tokens] : per_second) {
    summary.peak_output = std::max(summary.peak_output, tokens);
  }
  for (Metric& metric : summary.metrics) std::sort(metric.values.begin(), metric.values.end());
  return summary;
}

std::string row(std::string_view label, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", label, value);
}
std::string row(std::string_view label, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", label, value);
}

std::string Bench::table(const Summary& s) const {
  std::string out = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  out += row("Successful requests:", s.completed);
  out += row("Failed requests:", s.failed);
  if (o_.max_concurrency > 0) out += row("Maximum request concurrency:", o_.max_concurrency);
  if (o_.request_rate > 0) out += row("Request rate configured (RPS):", o_.request_rate);
  out += row("Benchmark duration (s):", s.duration);
  out += row("Total input tokens:", s.input_tokens);
  out += row("Total generated tokens:", s.output_tokens);
  out += row("Request throughput (req/s):", static_cast<double>(s.completed) / s.duration);
  if (!limits_.empty()) {
    out += row("Request goodput (req/s):", static_cast<double>(s.good) / s.duration);
  }
  out += row("Output token throughput (tok/s):", static_cast<double>(s.output_tokens) / s.duration);
  out += row("Peak output token throughput (tok/s):", s.peak_output);
  out += row("Peak concurrent requests:", s.peak_concurrency);
  out += row("Total token throughput (tok/s):",
             static_cast<double>(s.input_tokens + s.output_tokens) / s.duration);
  for (const Metric& metric : s.metrics) {
    out += fmt::format("{:-^50}\n", metric.heading);
    out += row(fmt::format("Mean {} (ms):", metric.label), mean(metric.values));
    out += row(fmt::format("Median {} (ms):", metric.label), percentile(metric.values, 50));
    for (const double p : o_.percentiles) {
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
  }
  return out + std::string(50, '=') + "\n";
}

std::string Bench::json(const Summary& s) const {
  Json json = {{"duration", s.duration},
               {"completed", s.completed},
               {"failed", s.failed},
               {"total_input_tokens", s.input_tokens},
               {"total_output_tokens", s.output_tokens},
               {"request_throughput", static_cast<double>(s.completed) / s.duration},
               {"request_goodput",
                limits_.empty() ? Json(nullptr) : Json(static_cast<double>(s.good) / s.duration)},
               {"output_throughput", static_cast<double>(s.output_tokens) / s.duration},
               {"total_token_throughput",
                static_cast<double>(s.input_tokens + s.output_tokens) / s.duration},
               {"max_concurrency", o_.max_concurrency},
               {"peak_concurrent_requests", s.peak_concurrency}};
  for (const Metric& metric : s.metrics) {
    const std::string name = std::string(metric.name) + "_ms";
    json["mean_" + name] = mean(metric.values);
    json["median_" + name] = percentile(metric.values, 50);
    json["std_" + name] = deviation(metric.values);
    for (const double p : o_.percentiles) {
      json[fmt::format("p{}_{}", p, name)] = percentile(metric.values, p);
    }
  }
  json["spec_decode_acceptance_length"] =
      s.acceptance_length ? Json(*s.acceptance_length) : Json(nullptr);
  return json.dump(2) + "\n";
}

// One line of names, one of values.
std::string Bench::csv(const Summary& summary) const {
  const Json values = Json::parse(json(summary));
  std::string names;
  std::string line;
  for (const auto& [name, value] : values.items()) {
    names += (names.empty() ? "" : ",") + name;
    line += (line.empty() ? "" : ",") + (value.is_null() ? "" : value.dump());
  }
  return names + "\n" + line + "\n";
}

// Four curves: the share of requests (or tokens) below each time.
std::string Bench::svg(const Summary& summary) {
  constexpr int kWidth = 360;
  constexpr int kHeight = 220;
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"520\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"760\" height=\"520\" "
      "fill=\"white\"/>\n";
  for (size_t i = 0; i < summary.metrics.size(); ++i) {
    const Metric& metric = summary.metrics[i];
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

Status Bench::save(const std::string& path, const std::string& text) {
  auto file = NIBBLE_TRY(OutputFile::create(path));
  NIBBLE_TRY(file.write(text));
  return file.commit();
}

Status Bench::run(int* exit_code) {
  target_ = NIBBLE_TRY(parse_load_target(o_.base_url, o_.endpoint));
  target_.api_key = o_.api_key;
  for (const std::string& limit : o_.goodput) {
    const size_t colon = limit.find(':');
    const std::string name = limit.substr(0, colon);
    if (colon == std::string::npos || (name != "ttft" && name != "tpot" && name != "e2el")) {
      return invalid_argument(
          fmt::format("--goodput '{}' is none of ttft:MS, tpot:MS, e2el:MS", limit));
    }
    limits_[name] = std::strtod(limit.c_str() + colon + 1, nullptr);
  }
  if (o_.dataset != "random" && o_.dataset_file.empty()) {
    return invalid_argument(fmt::format("--dataset {} needs --dataset-file", o_.dataset));
  }
  const std::vector<LoadRequest> requests = NIBBLE_TRY(make_requests());
  const auto go_on = [](int64_t) { return !interrupted(); };
  if (o_.num_warmups > 0) {
    std::vector<LoadRequest> some;
    for (int64_t i = 0; i < o_.num_warmups; ++i) {
      some.push_back(requests[static_cast<size_t>(i) % requests.size()]);
      some.back().start_second = 0;
    }
    NIBBLE_TRY(run_load(target_, some, o_.max_concurrency, go_on));
  }
  const auto before = spec_decode();
  const auto start = std::chrono::steady_clock::now();
  const auto results = NIBBLE_TRY(run_load(target_, requests, o_.max_concurrency, go_on));
  const double duration =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  NIBBLE_TRY(check_interrupt());
  Summary summary = summarize(results, duration);
  auto after = spec_decode();
  for (const auto& [name, value] : before) after[name] -= value;
  summary.drafts = after["vllm:spec_decode_num_drafts_total"];
  summary.draft_tokens = after["vllm:spec_decode_num_draft_tokens_total"];
  summary.accepted = after["vllm:spec_decode_num_accepted_tokens_total"];
  if (summary.drafts > 0) summary.acceptance_length = 1 + summary.accepted / summary.drafts;
  for (const LoadResult& result : results) {
    if (result.success) continue;
    std::fprintf(stderr, "nibble bench serve: the first failure: %s\n",
                 printable(result.error).c_str());
    break;
  }
  print(o_.format == "json" ? json(summary) : o_.format == "csv" ? csv(summary) : table(summary));
  if (!o_.save_result.empty()) NIBBLE_TRY(save(o_.save_result, json(summary)));
  if (!o_.save_svg.empty()) NIBBLE_TRY(save(o_.save_svg, svg(summary)));
  if (summary.failed > 0) *exit_code = 1;
  return {};
}

void add_options(CLI::App& command, Options* o) {
  command.add_option("--base-url", o->base_url, "Server [http://127.0.0.1:8000]")->type_name("URL");
  command.add_option("--endpoint", o->endpoint, "[/v1/completions]")->type_name("PATH");
  command.add_option("--model", o->model, "Name to ask for [the server's first]")
      ->type_name("NAME");
  command.add_option("--api-key", o->api_key, "Sent as Authorization: Bearer")->type_name("KEY");
  command.add_option("--dataset", o->dataset, "random, sharegpt or jsonl [random]")
      ->check(CLI::IsMember({"random", "sharegpt", "jsonl"}).description(""))
      ->type_name("NAME");
  command
      .add_option("--dataset-file", o->dataset_file,
                  "JSON lines: prompt or messages, output_len, timestamp (seconds)")
      ->type_name("FILE");
  command.add_option("--random-input-len", o->random_input_len, "Tokens [256]")
      ->check(CLI::Range(1, 10'000'000).description(""))
      ->type_name("N");
  command.add_option("--random-output-len", o->random_output_len, "Tokens [128]")
      ->check(CLI::Range(1, 10'000'000).description(""))
      ->type_name("N");
  command
      .add_option("--random-range-ratio", o->random_range_ratio,
                  "Lengths vary by this share, 0..1 [0]")
      ->check(CLI::Range(0.0, 1.0).description(""))
      ->type_name("X");
  command.add_option("--num-prompts", o->num_prompts, "Requests [100]")
      ->check(CLI::Range(1, 100'000'000).description(""))
      ->type_name("N");
  command.add_option("--num-warmups", o->num_warmups, "Requests before, not counted [0]")
      ->check(CLI::Range(0, 1'000'000).description(""))
      ->type_name("N");
  command.add_option("--request-rate", o->request_rate, "A second; Poisson [all at once]")
      ->check(CLI::Range(0.0, 1e9).description(""))
      ->type_name("X");
  command.add_option("--burstiness", o->burstiness, "1 is Poisson; less comes in bursts [1]")
      ->check(CLI::Range(0.001, 1e6).description(""))
      ->type_name("X");
  command.add_option("--max-concurrency", o->max_concurrency, "Requests at once [no limit]")
      ->check(CLI::Range(0, 1'000'000).description(""))
      ->type_name("N");
  command.add_flag("--ignore-eos", o->ignore_eos, "Outputs of exactly the asked length");
  command.add_option("--temperature", o->temperature, "[0]")->type_name("X");
  command.add_option("--seed", o->seed, "Of prompts and arrivals [0]")->type_name("N");
  command.add_option("--goodput", o->goodput, "ttft:MS tpot:MS e2el:MS, all must hold")
      ->type_name("LIMIT");
  command.add_option("--percentiles", o->percentiles, "[50,90,99]")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0).description(""))
      ->type_name("P");
  command.add_option("--format", o->format, "table, json or csv [table]")
      ->check(CLI::IsMember({"table", "json", "csv"}).description(""))
      ->type_name("NAME");
  command.add_option("--save-result", o->save_result, "JSON")->type_name("FILE");
  command.add_option("--save-svg", o->save_svg, "Curves of the four times")->type_name("FILE");
}

}  // namespace

void add_bench_serve_command(CLI::App& bench, int* exit_code) {
  CLI::App* command = bench.add_subcommand("serve", "Load for a server with OpenAI's API");
  command->footer(
      "Examples:\n"
      "  nibble bench serve --max-concurrency 32 --num-prompts 200 --ignore-eos\n"
      "  nibble bench serve --request-rate 4 --goodput ttft:500 tpot:50 --save-svg load.svg\n"
      "  nibble bench serve --endpoint /v1/chat/completions --dataset jsonl --dataset-file "
      "q.jsonl");
  auto options = std::make_shared<Options>();
  add_options(*command, options.get());
  command->callback([options, exit_code] {
    const Status status = Bench(*options).run(exit_code);
    if (!status) *exit_code = report_status(status, "bench serve");
  });
}

}  // namespace nibble
