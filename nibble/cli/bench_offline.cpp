// nibble bench offline: what the engine does with many requests at once, by batch size.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/progress.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/backend_options.h"
#include "nibble/cli/bench_command.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/parallel_options.h"
#include "nibble/engine/engine.h"
#include "nibble/tokenizer/chat_template.h"

namespace nibble {
namespace {

struct BenchOptions {
  std::string model = "demo";
  int64_t num_requests = 64;
  int64_t input_len = 256;
  int64_t output_len = 128;
  std::vector<int64_t> batch_sizes = {1, 8, 32};
  std::string prompts;  // JSONL; empty: random tokens
  int64_t num_drafts = 0;
  bool adaptive_drafts = false;
  double draft_cost = 0.1;
  bool draft_sampling = false;
  std::optional<double> forced_acceptance_length;
  double temperature = 0;
  int64_t max_num_tokens = 512;
  int64_t seed = 0;
  BackendOptions backend;
  ParallelOptions parallel;
  bool w4a4 = false;
  bool json = false;
  bool quiet = false;
};

struct BenchRow {
  int64_t batch_size = 0;
  double seconds = 0;
  int64_t output_tokens = 0;
  int64_t input_tokens = 0;
  double output_tokens_per_second = 0;
  double total_tokens_per_second = 0;
  // Tokens after the step in which the last request got its first, 0 when there are none. With
  // all requests in the batch: generation without prompts.
  double decode_tokens_per_second = 0;
  double acceptance_length = 1;
  int64_t num_preemptions = 0;
  EngineStats stats;
  MemoryReport memory;
};

Status check(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return invalid_argument(fmt::format("{} is {}, expected {}..{}", name, value, low, high));
}

Status check_options(const BenchOptions& o) {
  NIBBLE_TRY(check("--num-requests", o.num_requests, 1, 1'000'000));
  NIBBLE_TRY(check("--input-len", o.input_len, 1, 1'000'000));
  NIBBLE_TRY(check("--output-len", o.output_len, 1, 1'000'000));
  NIBBLE_TRY(validate(o.backend));
  for (const int64_t size : o.batch_sizes) NIBBLE_TRY(check("--batch-sizes", size, 1, 65536));
  return {};
}

Request bench_request(const BenchOptions& o) {
  Request request;
  request.params.temperature = o.temperature;
  request.params.seed = o.seed;
  request.params.ignore_eos = o.prompts.empty();
  request.params.max_tokens = o.output_len;
  return request;
}

// Prompts of random ordinary tokens: no two share a prefix, so nothing is found in the cache.
std::vector<Request> random_requests(const BenchOptions& o, const LoadedModel& model) {
  std::mt19937_64 rng(static_cast<uint64_t>(o.seed));
  const auto ordinary = static_cast<uint64_t>(model.tokenizer.vocab_size());
  std::vector<Request> requests(static_cast<size_t>(o.num_requests), bench_request(o));
  for (Request& request : requests) {
    while (static_cast<int64_t>(request.prompt_token_ids.size()) < o.input_len) {
      const auto id = static_cast<int32_t>(rng() % ordinary);
      if (!model.is_eos(id) && !model.tokenizer.is_special(id)) {
        request.prompt_token_ids.push_back(id);
      }
    }
  }
  return requests;
}

// The questions of a JSONL file in the model's chat template, in turn until there are enough.
Result<std::vector<Request>> chat_requests(const BenchOptions& o, const LoadedModel& model) {
  const std::string text = NIBBLE_TRY(read_text_file(o.prompts));
  const ChatTemplate chat_template = NIBBLE_TRY(ChatTemplate::load(model.directory, ""));
  std::vector<Request> questions;
  std::istringstream lines(text);
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    std::string question;
    for (const char* const key : {"prompt", "problem", "question"}) {
      if (json.is_object() && json.contains(key) && json[key].is_string()) question = json[key];
    }
    if (question.empty()) {
      return invalid_argument(
          fmt::format("{}:{}: expected a JSON object with a text 'prompt', 'problem' or 'question'",
                      o.prompts, number));
    }
    ChatRequest chat;
    ChatMessage message;
    message.role = "user";
    message.content = std::move(question);
    chat.messages.push_back(std::move(message));
    Request request = bench_request(o);
    request.prompt_token_ids = NIBBLE_TRY(chat_template.encode(chat, model.tokenizer));
    questions.push_back(std::move(request));
  }
  if (questions.empty()) return invalid_argument(o.prompts + ": no prompts");
  std::vector<Request> requests;
  while (static_cast<int64_t>(requests.size()) < o.num_requests) {
    requests.push_back(questions[requests.size() % questions.size()]);
  }
  return requests;
}

Result<BenchRow> run_batch_size(const BenchOptions& o, LoadedModel& model,
                                const std::vector<Request>& requests, int64_t batch_size) {
  EngineOptions options;
  apply(o.backend, &options);
  options.max_batch_size = batch_size;
  options.max_num_tokens = std::max(o.max_num_tokens, batch_size * (1 + o.num_drafts));
  options.num_drafts = o.num_drafts;
  options.draft.adaptive = o.adaptive_drafts;
  options.draft.draft_cost = o.draft_cost;
  options.draft.draft_sampling = o.draft_sampling;
  options.forced_acceptance_length = o.forced_acceptance_length;
  const auto engine = NIBBLE_TRY(Engine::create(model, options));
  BenchRow row;
  for (const Request& request : requests) {
    row.input_tokens += static_cast<int64_t>(request.prompt_token_ids.size());
    NIBBLE_TRY(engine->add(request));
  }

  Progress progress(fmt::format("batch size {}", batch_size),
                    static_cast<uint64_t>(o.num_requests * o.output_len), Progress::Unit::kItems,
                    !o.quiet && !o.json);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::set<uint64_t> answered;  // requests that have a token
  int64_t first_tokens = 0;     // when every request had one
  double first_seconds = 0;
  while (engine->has_work()) {
    NIBBLE_TRY(check_interrupt());
    for (const RequestUpdate& update : engine->step()) {
      if (update.error) return tl::unexpected(*update.error);
      progress.add(update.token_ids.size());
      row.output_tokens += static_cast<int64_t>(update.token_ids.size());
      if (!update.token_ids.empty()) answered.insert(update.id);
    }
    if (first_tokens == 0 && answered.size() == requests.size()) {
      first_tokens = row.output_tokens;
      first_seconds = elapsed();
    }
  }
  row.batch_size = batch_size;
  row.seconds = elapsed();
  if (row.output_tokens > first_tokens) {
    row.decode_tokens_per_second =
        static_cast<double>(row.output_tokens - first_tokens) / (row.seconds - first_seconds);
  }
  const auto output = static_cast<double>(row.output_tokens);
  const auto input = static_cast<double>(row.input_tokens);
  row.output_tokens_per_second = output / row.seconds;
  row.total_tokens_per_second = (input + output) / row.seconds;
  const EngineStats stats = engine->stats();
  row.acceptance_length = stats.acceptance_length();
  row.num_preemptions = stats.num_preemptions;
  row.stats = stats;
  row.memory = NIBBLE_TRY(engine->memory());
  return row;
}

// "" or ", TP 4 EP 2".
std::string describe(const Shard& shard) {
  if (shard.is_whole()) return "";
  return fmt::format(", TP {} EP {}{}", shard.tp_size, shard.ep_size,
                     shard.enable_attention_dp ? " attention DP" : "");
}

void print_table(const BenchOptions& o, const LoadedModel& model,
                 const std::vector<BenchRow>& rows) {
  print(fmt::format(
      "{}, {}{}: {} requests of {:.0f} tokens in, {:.0f} out, {} drafts{}\n",
      model.directory.string(), model.kernels->name(), describe(model.weights.shard),
      o.num_requests,
      static_cast<double>(rows.front().input_tokens) / static_cast<double>(o.num_requests),
      static_cast<double>(rows.front().output_tokens) / static_cast<double>(o.num_requests),
      o.num_drafts, o.adaptive_drafts ? " at most" : ""));
  if (o.forced_acceptance_length) {
    print(fmt::format("ACCEPTANCE IS FORCED to {} tokens a window\n", *o.forced_acceptance_length));
  }
  print("batch size   seconds   output tok/s   total tok/s   against first   acceptance\n");
  for (const BenchRow& row : rows) {
    print(fmt::format("{:10}   {:7.2f}   {:12.1f}   {:11.1f}   {:12.2f}x   {:10.2f}\n",
                      row.batch_size, row.seconds, row.output_tokens_per_second,
                      row.total_tokens_per_second,
                      row.output_tokens_per_second / rows.front().output_tokens_per_second,
                      row.acceptance_length));
  }
  if (rows.front().stats.num_device_windows == 0) return;
  for (const BenchRow& row : rows) {
    print(fmt::format("batch size {}: {}\n", row.batch_size, gpu_summary(row.stats)));
  }
  print(to_text(rows.back().memory) + "\n");
}

void print_json(const BenchOptions& o, const LoadedModel& model,
                const std::vector<BenchRow>& rows) {
  nlohmann::ordered_json json = {{"model", model.directory.string()},
                                 {"backend", model.kernels->name()},
                                 {"tp_size", model.weights.shard.tp_size},
                                 {"ep_size", model.weights.shard.ep_size},
                                 {"enable_attention_dp", model.weights.shard.enable_attention_dp},
                                 {"num_requests", o.num_requests},
                                 {"input_len", o.input_len},
                                 {"output_len", o.output_len},
                                 {"num_drafts", o.num_drafts},
                                 {"adaptive_drafts", o.adaptive_drafts},
                                 {"rows", nlohmann::ordered_json::array()}};
  if (o.forced_acceptance_length) json["forced_acceptance_length"] = *o.forced_acceptance_length;
  for (const BenchRow& row : rows) {
    json["rows"].push_back({{"batch_size", row.batch_size},
                            {"seconds", row.seconds},
                            {"input_tokens", row.input_tokens},
                            {"output_tokens", row.output_tokens},
                            {"output_tokens_per_second", row.output_tokens_per_second},
                            {"total_tokens_per_second", row.total_tokens_per_second},
                            {"decode_tokens_per_second", row.decode_tokens_per_second},
                            {"acceptance_length", row.acceptance_length},
                            {"num_preemptions", row.num_preemptions},
                            {"num_steps", row.stats.num_steps},
                            {"replayed", row.stats.graphs.num_replayed},
                            {"replayed_device_seconds", row.stats.graphs.device_seconds},
                            {"replayed_step_seconds", row.stats.replayed_step_seconds},
                            {"host_windows", row.stats.num_host_windows},
                            {"device_windows", row.stats.num_device_windows}});
    for (const auto& [use, bytes] : row.memory.uses) json["rows"].back()["memory"][use] = bytes;
  }
  print(json.dump(2) + "\n");
}

Status run_offline(const BenchOptions& o) {
  NIBBLE_TRY(check_options(o));
  ModelOptions options;
  apply(o.backend, &options);
  options.load_mtp = o.num_drafts > 0;
  options.nvfp4_activation = o.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  const auto directory = NIBBLE_TRY(resolve_model(o.model));
  const RankOptions rank_options = NIBBLE_TRY(apply(o.parallel, &options));
  const auto ranks = NIBBLE_TRY(RankGroup::start(directory, options, rank_options));
  if (ranks->is_worker()) return ranks->serve();
  const auto model = NIBBLE_TRY(ranks->load_model());
  std::vector<Request> requests;
  if (o.prompts.empty()) {
    requests = random_requests(o, *model);
  } else {
    requests = NIBBLE_TRY(chat_requests(o, *model));
  }
  std::vector<BenchRow> rows;
  for (const int64_t batch_size : o.batch_sizes) {
    rows.push_back(NIBBLE_TRY(run_batch_size(o, *model, requests, batch_size)));
  }
  if (o.json) {
    print_json(o, *model, rows);
  } else {
    print_table(o, *model, rows);
  }
  return {};
}

}  // namespace

void add_bench_offline_command(CLI::App& bench, int* exit_code) {
  CLI::App* command = bench.add_subcommand("offline", "Throughput of the engine by batch size");
  command->footer(
      "Without --prompts the prompts are random tokens and answers have a fixed length, so the "
      "text\n"
      "means nothing, and neither does the acceptance with --num-drafts.\n"
      "Example:\n"
      "  nibble bench offline demo --num-requests 64 --batch-sizes 1,8,32");
  auto o = std::make_shared<BenchOptions>();
  command->add_option("MODEL", o->model, "Checkpoint directory, or a model's name [demo]");
  command->add_option("--num-requests", o->num_requests, "Requests of each row [64]")
      ->type_name("N");
  command->add_option("--input-len", o->input_len, "Tokens of a prompt [256]")->type_name("N");
  command->add_option("--output-len", o->output_len, "Tokens of an answer [128]")->type_name("N");
  command->add_option("--batch-sizes", o->batch_sizes, "One row for each [1,8,32]")
      ->delimiter(',')
      ->type_name("N,N,...");
  command
      ->add_option("--prompts", o->prompts,
                   "JSONL with a 'prompt', 'problem' or 'question' a line, asked as a chat")
      ->type_name("FILE");
  command->add_option("--temperature", o->temperature, "0..2, 0 is greedy [0]")->type_name("X");
  command->add_option("--num-drafts", o->num_drafts, "Drafts of the MTP layer, 0..8 [0]")
      ->type_name("N");
  command->add_flag("--adaptive-drafts", o->adaptive_drafts,
                    "Fewer drafts for a request whose drafts are refused");
  command->add_option("--draft-cost", o->draft_cost, "Of a draft, in steps without drafts [0.1]")
      ->type_name("X");
  command->add_flag("--draft-sampling", o->draft_sampling,
                    "Draw drafts instead of taking the likeliest");
  command
      ->add_option("--forced-acceptance-length", o->forced_acceptance_length,
                   "Tokens of a window that stand whatever the model says; the text means nothing")
      ->type_name("X");
  command->add_option("--max-num-tokens", o->max_num_tokens, "Tokens of a step [512]")
      ->type_name("N");
  command->add_option("--seed", o->seed, "Of the prompts [0]")->type_name("N");
  add_backend_options(*command, &o->backend);
  add_parallel_options(*command, &o->parallel, "Several ranks");
  command->add_flag("--w4a4", o->w4a4, "Quantize activations to NVFP4 too");
  command->add_flag("--json", o->json, "Print JSON instead of a table");
  command->add_flag("-q,--quiet", o->quiet, "No progress on stderr");
  command->callback(
      [o, exit_code] { *exit_code = report_status(run_offline(*o), "bench offline"); });
}

}  // namespace nibble
