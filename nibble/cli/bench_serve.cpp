// nibble bench serve: load for any server with OpenAI's API, and what its users would have felt.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/output_file.h"
#include "nibble/cli/bench_command.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/load_dataset.h"
#include "nibble/cli/load_report.h"
#include "nibble/server/load_generator.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string base_url = "http://127.0.0.1:8000";
  std::string api_key;
  LoadDataset load;
  int64_t num_warmups = 0;
  int64_t max_concurrency = 0;
  bool server_delay = false;
  std::vector<std::string> goodput;
  std::vector<double> percentiles = {50, 90, 99};
  std::vector<std::string> percentile_metrics;
  std::string format = "table";
  std::string layout = "vllm";
  std::string save_result;
  std::string save_svg;
};

class Bench {
 public:
  explicit Bench(Options options) : o_(std::move(options)) {}

  Status run(int* exit_code);

 private:
  std::map<std::string, double> spec_decode() const;
  void describe_server(LoadSummary* summary) const;
  LoadSummary summarize(const std::vector<LoadResult>& results, double duration) const;
  bool is_good(const LoadResult& result, double tpot) const;
  static Status save(const std::string& path, const std::string& text);

  Options o_;
  LoadTarget target_;
  std::map<std::string, double> limits_;  // "ttft" -> ms
};

std::string position_name(size_t position) { return fmt::format("position {}", position); }

// What nibble serve tells of itself; of other servers the model's name.
void Bench::describe_server(LoadSummary* summary) const {
  const auto read = [&](const std::string& path) {
    const auto page = http_get(target_, path);
    return page ? Json::parse(*page, nullptr, false) : Json();
  };
  const auto text = [](const Json& json, const char* name) {
    return json.is_object() && json.contains(name) && json[name].is_string()
               ? json[name].get<std::string>()
               : std::string();
  };
  const Json info = read("/server_info");
  summary->backend = text(info, "kernels");
  summary->model = text(info, "model");
  if (info.is_object() && info.contains("num_drafts") && info["num_drafts"].is_number_integer()) {
    summary->num_drafts = info["num_drafts"].get<int64_t>();
  }
  if (!summary->model.empty()) return;
  summary->model = o_.load.model;
  const Json models = read("/v1/models");
  if (summary->model.empty() && models.is_object() && models.contains("data") &&
      models["data"].is_array() && !models["data"].empty()) {
    summary->model = text(models["data"][0], "id");
  }
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
    const double value = std::strtod(line.c_str() + space, nullptr);
    values[line.substr(0, line.find('{'))] += value;
    const size_t position = line.find("position=\"");
    if (position == std::string::npos) continue;
    values[position_name(std::strtoul(line.c_str() + position + 10, nullptr, 10))] += value;
  }
  return values;
}

bool Bench::is_good(const LoadResult& result, double tpot) const {
  const std::map<std::string, double> values = {
      {"ttft", 1e3 * result.time_to_first_token}, {"tpot", tpot}, {"e2el", 1e3 * result.latency}};
  return std::all_of(limits_.begin(), limits_.end(),
                     [&](const auto& limit) { return values.at(limit.first) <= limit.second; });
}

LoadSummary Bench::summarize(const std::vector<LoadResult>& results, double duration) const {
  LoadSummary summary;
  summary.duration = duration;
  summary.max_concurrency = o_.max_concurrency;
  summary.request_rate = o_.load.request_rate;
  summary.has_goodput = !limits_.empty();
  summary.percentiles = o_.percentiles;
  summary.percentile_metrics = o_.percentile_metrics;
  summary.metrics = {{"ttft", "Time to First Token", "TTFT", {}},
                     {"tpot", "Time per Output Token (excl. 1st token)", "TPOT", {}},
                     {"itl", "Inter-token Latency", "ITL", {}},
                     {"e2el", "End-to-end Latency", "E2EL", {}}};
  if (o_.server_delay)
    summary.metrics.push_back({"delay", "Server's Share of a Token", "Delay", {}});
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
    if (o_.server_delay) {
      for (const double delay : result.delays) summary.metrics[4].values.push_back(1e3 * delay);
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
  for (LoadMetric& metric : summary.metrics) std::sort(metric.values.begin(), metric.values.end());
  return summary;
}

Status Bench::save(const std::string& path, const std::string& text) {
  auto file = NIBBLE_TRY(OutputFile::create(path));
  NIBBLE_TRY(file.write(text));
  return file.commit();
}

Status Bench::run(int* exit_code) {
  target_ = NIBBLE_TRY(parse_load_target(o_.base_url, o_.load.endpoint));
  target_.api_key = o_.api_key;
  target_.ask_step_time = o_.server_delay;
  for (const std::string& limit : o_.goodput) {
    const size_t colon = limit.find(':');
    const std::string name = limit.substr(0, colon);
    if (colon == std::string::npos || (name != "ttft" && name != "tpot" && name != "e2el")) {
      return invalid_argument(
          fmt::format("--goodput '{}' is none of ttft:MS, tpot:MS, e2el:MS", limit));
    }
    limits_[name] = std::strtod(limit.c_str() + colon + 1, nullptr);
  }
  const std::vector<LoadRequest> requests = NIBBLE_TRY(make_load_requests(o_.load));
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
  LoadSummary summary = summarize(results, duration);
  auto after = spec_decode();
  for (const auto& [name, value] : before) after[name] -= value;
  summary.drafts = after["vllm:spec_decode_num_drafts_total"];
  summary.draft_tokens = after["vllm:spec_decode_num_draft_tokens_total"];
  summary.accepted = after["vllm:spec_decode_num_accepted_tokens_total"];
  for (size_t i = 0; after.count(position_name(i)) > 0; ++i) {
    summary.accepted_at.push_back(after[position_name(i)]);
  }
  describe_server(&summary);
  if (summary.drafts > 0) summary.acceptance_length = 1 + summary.accepted / summary.drafts;
  for (const LoadResult& result : results) {
    if (result.success) continue;
    std::fprintf(stderr, "nibble bench serve: the first failure: %s\n",
                 printable(result.error).c_str());
    break;
  }
  print(o_.format == "json"     ? load_json(summary)
        : o_.format == "csv"    ? load_csv(summary)
        : o_.layout == "trtllm" ? load_table_trtllm(summary)
                                : load_table(summary));
  if (!o_.save_result.empty()) NIBBLE_TRY(save(o_.save_result, load_json(summary)));
  if (!o_.save_svg.empty()) NIBBLE_TRY(save(o_.save_svg, load_svg(summary)));
  if (summary.failed > 0) *exit_code = 1;
  return {};
}

void add_load_options(CLI::App& command, LoadDataset* o) {
  command.add_option("--endpoint", o->endpoint, "[/v1/completions]")->type_name("PATH");
  command.add_option("--model", o->model, "Name to ask for [the server's first]")
      ->type_name("NAME");
  command.add_option("--dataset", o->kind, "random, sharegpt, jsonl or mooncake [random]")
      ->check(CLI::IsMember({"random", "sharegpt", "jsonl", "mooncake"}).description(""))
      ->type_name("NAME");
  command
      .add_option(
          "--dataset-file", o->file,
          "jsonl: prompt, messages or input_len; output_len, timestamp (seconds). mooncake: "
          "timestamp (ms), input_length, output_length, hash_ids")
      ->type_name("FILE");
  command.add_option("--trace-speedup", o->trace_speedup, "Divides the timestamps [1]")
      ->check(CLI::Range(1e-6, 1e6).description(""))
      ->type_name("X");
  command
      .add_option("--trace-length-scale", o->trace_length_scale,
                  "Multiplies a mooncake trace's lengths [1]")
      ->check(CLI::Range(1e-6, 1e6).description(""))
      ->type_name("X");
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
  command.add_option("--num-prompts", o->num_prompts, "Requests [100, or a whole trace]")
      ->check(CLI::Range(1, 100'000'000).description(""))
      ->type_name("N");
  command.add_option("--request-rate", o->request_rate, "A second; Poisson [all at once]")
      ->check(CLI::Range(0.0, 1e9).description(""))
      ->type_name("X");
  command.add_option("--burstiness", o->burstiness, "1 is Poisson; less comes in bursts [1]")
      ->check(CLI::Range(0.001, 1e6).description(""))
      ->type_name("X");
  command.add_flag("--ignore-eos", o->ignore_eos, "Outputs of exactly the asked length");
  command.add_option("--temperature", o->temperature, "[0]")->type_name("X");
  command.add_option("--seed", o->seed, "Of prompts and arrivals [0]")->type_name("N");
}

void add_options(CLI::App& command, Options* o) {
  command.add_option("--base-url", o->base_url, "Server [http://127.0.0.1:8000]")->type_name("URL");
  command.add_option("--api-key", o->api_key, "Sent as Authorization: Bearer")->type_name("KEY");
  add_load_options(command, &o->load);
  command.add_option("--num-warmups", o->num_warmups, "Requests before, not counted [0]")
      ->check(CLI::Range(0, 1'000'000).description(""))
      ->type_name("N");
  command.add_option("--max-concurrency", o->max_concurrency, "Requests at once [no limit]")
      ->check(CLI::Range(0, 1'000'000).description(""))
      ->type_name("N");
  command.add_flag("--server-delay", o->server_delay,
                   "Of nibble serve on this host: from a step's end until a token is read here");
  command.add_option("--goodput", o->goodput, "ttft:MS tpot:MS e2el:MS, all must hold")
      ->type_name("LIMIT");
  command.add_option("--percentiles", o->percentiles, "[50,90,99]")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0).description(""))
      ->type_name("P");
  command
      .add_option("--percentile-metrics", o->percentile_metrics,
                  "Parts of the table: ttft, tpot, itl, e2el, delay [all]")
      ->delimiter(',')
      ->check(CLI::IsMember({"ttft", "tpot", "itl", "e2el", "delay"}).description(""))
      ->type_name("NAME");
  command.add_option("--layout", o->layout, "Table as of vllm or of trtllm [vllm]")
      ->check(CLI::IsMember({"vllm", "trtllm"}).description(""))
      ->type_name("NAME");
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
