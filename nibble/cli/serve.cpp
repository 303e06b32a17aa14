// nibble serve: an OpenAI-compatible server.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/log.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/generation_config.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/build_commit.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/serve_memory_plan.h"
#include "nibble/cli/serve_options.h"
#include "nibble/engine/engine_thread.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/server/http.h"
#include "nibble/server/service.h"

namespace nibble {
namespace {

constexpr const char* kFooter =
    R"(Every option may stand in a YAML file (--config), in the spelling of trtllm-serve or ours, and
in the environment as NIBBLE_SERVE_NAME. A file wins over the command line, that over the environment.
--no-NAME is the opposite of a switch.
Examples:
  nibble serve demo
  nibble serve DIR --host 0.0.0.0 --api_key_file keys.txt --max_batch_size 64 --max_num_tokens 1024
  curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello!"}]}')";

std::atomic<bool> g_hangup{false};

void on_hangup(int) { g_hangup = true; }

Result<std::vector<std::string>> read_key_file(const std::string& path) {
  const std::string text = NIBBLE_TRY(read_text_file(path, 1 << 20));
  std::vector<std::string> keys;
  std::string line;
  for (const char c : text + "\n") {
    if (c != '\n') {
      line += c;
      continue;
    }
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line.front() != '#') keys.push_back(line);
    line.clear();
  }
  if (keys.empty()) return invalid_argument(fmt::format("{} holds no key", path));
  return keys;
}

std::string to_text(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

uint64_t weight_bytes(const std::filesystem::path& directory) {
  uint64_t total = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    if (entry.path().extension() == ".safetensors") total += entry.file_size(ignored);
  }
  return total;
}

// Everything that one server keeps. Members in the order of their needs: the engine goes before the
// model, the service and its server before both.
class Server {
 public:
  explicit Server(ServeOptions options) : options_(std::move(options)) {}

  Status run();

 private:
  struct Loaded {
    std::unique_ptr<LoadedModel> model;
    std::unique_ptr<EngineThread> engine;
    ServedModel served;
  };

  Result<Loaded> load();
  Result<ServedModel> describe(LoadedModel& model, const EngineThread& engine) const;
  void take_over(Result<Loaded> result);
  void tick();
  void stop_behind_replies();
  void reload();
  nlohmann::ordered_json effective_configuration() const;
  std::string server_info(const ServedEngine& served) const;
  Status print_plan() const;

  ServeOptions options_;
  std::filesystem::path directory_;
  std::vector<std::string> command_line_keys_;
  std::unique_ptr<RankGroup> ranks_;
  Loaded loaded_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> http_;
  std::thread loader_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Status outcome_;
  bool draining_ = false;
  bool failing_ = false;
  bool ready_ = false;
};

nlohmann::ordered_json Server::effective_configuration() const {
  const ServeOptions& o = options_;
  using Json = nlohmann::ordered_json;
  return {{"model", o.model},
          {"directory", directory_.string()},
          {"host", o.http.host},
          {"port", o.http.port},
          {"tls", !o.http.certificate_file.empty()},
          {"api_keys", o.service.access.api_keys.size()},
          {"backend", o.model_options.backend},
          {"kernels", loaded_.model ? Json(loaded_.model->kernels->name()) : Json(nullptr)},
          {"cuda_graphs", o.engine.cuda_graphs},
          {"cuda_batch_invariant", o.model_options.cuda.batch_invariant},
          {"tp_size", std::max(1, o.model_options.shard.tp_size)},
          {"ep_size", std::max(1, o.model_options.shard.ep_size)},
          {"enable_attention_dp", o.model_options.shard.enable_attention_dp},
          {"max_batch_size", o.engine.max_batch_size},
          {"max_num_tokens", o.engine.max_num_tokens},
          {"max_seq_len", o.model_options.max_seq_len},
          {"kv_cache_free_gpu_memory_fraction", o.engine.kv_cache_free_gpu_memory_fraction.value_or(
                                                    o.model_options.backend == "cuda" ? 0.9 : 0.3)},
          {"tokens_per_block", o.engine.block_size},
          {"num_blocks", o.engine.num_blocks},
          {"enable_block_reuse", o.engine.enable_block_reuse},
          {"enable_chunked_prefill", o.engine.enable_chunked_prefill},
          {"num_drafts", o.engine.num_drafts},
          {"use_relaxed_acceptance_for_thinking", o.engine.relaxed_thinking.enabled},
          {"max_queue_size", o.service.max_queue_size},
          {"max_request_bytes", o.service.max_request_bytes},
          {"thinking", o.thinking},
          {"sampling_defaults", o.sampling_defaults}};
}

// What became of the options, what the memory went to, and the shape of the model.
std::string Server::server_info(const ServedEngine& served) const {
  auto json = effective_configuration();
  const EngineStats stats = loaded_.engine->stats();
  json["max_seq_len"] = loaded_.engine->max_seq_len();
  json["num_blocks"] = stats.num_blocks;
  json["served_model_names"] = served.model.names;
  json["memory"] = {{"device", served.device},
                    {"weight_bytes", served.weight_bytes},
                    {"kv_cache_bytes", served.kv_cache_bytes},
                    {"kv_cache_tokens", stats.num_blocks * options_.engine.block_size}};
  const ModelConfig& config = loaded_.model->config;
  json["model_shape"] = {{"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.num_hidden_layers},
                         {"num_attention_heads", config.num_attention_heads},
                         {"q_lora_rank", config.q_lora_rank},
                         {"kv_lora_rank", config.kv_lora_rank},
                         {"n_routed_experts", config.n_routed_experts},
                         {"num_experts_per_tok", config.num_experts_per_tok},
                         {"max_position_embeddings", config.max_position_embeddings}};
  return to_text(json);
}

Status Server::print_plan() const {
  auto json = effective_configuration();
  const auto planned = plan_serve_memory(directory_, options_);
  if (!planned) {  // no such device here, or no such model
    json["memory_plan"] = nullptr;
    print(to_text(json) + "\n");
    return tl::unexpected(planned.error());
  }
  const ServeMemoryPlan& plan = *planned;
  json["memory_plan"] = {{"device", plan.device},
                         {"total_bytes", plan.total_bytes},
                         {"available_bytes", plan.available_bytes},
                         {"weight_bytes", plan.weight_bytes},
                         {"kv_cache_bytes", plan.kv_cache_bytes},
                         {"kv_cache_tokens", plan.kv_cache_tokens},
                         {"max_seq_len", plan.max_seq_len},
                         {"fits", plan.outcome.has_value()}};
  print(to_text(json) + "\n");
  return plan.outcome;
}

Result<ServedModel> Server::describe(LoadedModel& model, const EngineThread& engine) const {
  const ServeOptions& o = options_;
  ServedModel served;
  served.names = o.served_model_names;
  if (served.names.empty()) {
    served.names.push_back(o.model);
    const std::string last = std::filesystem::path(o.model).filename().string();
    if (!last.empty() && last != o.model) served.names.push_back(last);
  }
  served.tokenizer = &model.tokenizer;
  auto chat_template = ChatTemplate::load(directory_, o.chat_template);
  if (chat_template) {
    served.chat_template = *std::move(chat_template);
  } else if (!o.chat_template.empty() || chat_template.error().code != ErrorCode::kNotFound) {
    return tl::unexpected(std::move(chat_template).error());
  } else {
    served.chat_template_problem = chat_template.error().message;
  }
  served.tags = find_reply_tags(model.tokenizer);
  served.eos_token_ids = model.config.eos_token_ids;
  served.vocab_size = model.config.vocab_size;
  served.max_seq_len = engine.max_seq_len();
  if (o.sampling_defaults == "model") {
    const GenerationConfig defaults = NIBBLE_TRY(load_generation_config(directory_));
    served.temperature = defaults.temperature.value_or(1);
    served.top_p = defaults.top_p.value_or(1);
    served.top_k = defaults.top_k.value_or(0);
  }
  served.max_new_tokens = o.max_new_tokens;
  served.max_logprobs = o.max_logprobs;
  served.thinking = o.thinking == "on"    ? ChatThinking::kOn
                    : o.thinking == "off" ? ChatThinking::kOff
                                          : ChatThinking::kAuto;
  // A template of a model that never thinks has no reasoning to tell apart.
  const bool thinks = served.chat_template && !served.chat_template->ignores_thinking();
  served.parse_reasoning = o.reasoning_parser != "none" &&
                           (thinks || o.reasoning_parser != "auto") && served.tags.think_end >= 0;
  served.parse_tools = o.tool_parser != "none" && served.tags.calls_begin >= 0;
  served.allow_special_in_content = o.allow_special_in_content;
  served.strict_request_fields = o.strict_request_fields;
  served.reasoning_content = o.reasoning_fields != "reasoning";
  served.reasoning = o.reasoning_fields != "reasoning_content";
  return served;
}

Result<Server::Loaded> Server::load() {
  Loaded loaded;
  LoadProgress progress;
  progress.bytes_total = weight_bytes(directory_);
  const auto on_progress = [this, progress](double share) mutable {
    progress.bytes_loaded =
        static_cast<uint64_t>(share * static_cast<double>(progress.bytes_total));
    service_->set_progress(progress);
  };
  loaded.model = NIBBLE_TRY(ranks_->load_model(on_progress));
  progress.phase = "kv_cache";
  progress.bytes_loaded = progress.bytes_total;
  service_->set_progress(progress);
  auto engine = NIBBLE_TRY(Engine::create(*loaded.model, options_.engine));
  loaded.engine = std::make_unique<EngineThread>(std::move(engine));
  loaded.served = NIBBLE_TRY(describe(*loaded.model, *loaded.engine));
  progress.phase = "self_test";
  service_->set_progress(progress);
  // A few tokens before anyone asks: weights that give no numbers show here.
  Request probe;
  probe.prompt_token_ids = {static_cast<int32_t>(loaded.model->config.bos_token_id)};
  probe.params.temperature = 0;
  probe.params.max_tokens = std::min<int64_t>(4, loaded.engine->max_seq_len() - 1);
  probe.params.ignore_eos = true;
  std::promise<std::optional<Error>> done;
  NIBBLE_TRY(loaded.engine->submit(std::move(probe), [&](const RequestUpdate& update) {
    if (update.finished) done.set_value(update.error);
  }));
  std::optional<Error> error = done.get_future().get();
  if (error) return tl::unexpected(std::move(*error).with_context("the first tokens"));
  return loaded;
}

void Server::take_over(Result<Loaded> result) {
  if (!result) {
    outcome_ = tl::unexpected(std::move(result).error());
    http_->stop();
    return;
  }
  loaded_ = *std::move(result);
  const EngineStats stats = loaded_.engine->stats();
  log_info(fmt::format(
      "KV cache: {} tokens in {} blocks; context {} tokens",
      format_count(static_cast<uint64_t>(stats.num_blocks * options_.engine.block_size)),
      format_count(static_cast<uint64_t>(stats.num_blocks)), loaded_.engine->max_seq_len()));
  if (const auto memory = loaded_.engine->memory()) log_info("memory: " + to_text(*memory));
  if (loaded_.served.chat_template) {
    log_info("chat template: " + loaded_.served.chat_template->origin());
  } else {
    log_warning("no chat: " + loaded_.served.chat_template_problem);
  }
  ServedEngine served;
  served.engine = loaded_.engine.get();
  served.model = loaded_.served;
  served.device = loaded_.model->kernels->device().name();
  served.block_size = options_.engine.block_size;
  served.weight_bytes = loaded_.model->weights.device_bytes;
  const DType cache_type =
      options_.engine.kv_cache_dtype.value_or(loaded_.model->default_kv_cache_dtype());
  served.kv_cache_bytes =
      static_cast<uint64_t>(stats.num_blocks * options_.engine.block_size) *
      KvCache::bytes_per_token(loaded_.model->config, cache_type, options_.engine.num_drafts > 0);
  served.server_info = server_info(served);
  service_->become_ready(std::move(served));
  ready_ = true;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  log_info(fmt::format("ready in {:.1f} s", seconds));
}

void Server::reload() {
  if (!options_.api_key_file.empty()) {
    auto keys = read_key_file(options_.api_key_file);
    if (keys) {
      keys->insert(keys->end(), command_line_keys_.begin(), command_line_keys_.end());
      log_info(fmt::format("{} API keys", keys->size()));
      service_->set_api_keys(*std::move(keys));
    } else {
      log_error(keys.error().message + "; the old keys stay");
    }
  }
  if (options_.http.certificate_file.empty()) return;
  const Status status = http_->reload_certificate();
  if (status) {
    log_info("certificate read again");
  } else {
    log_error(status.error().message + "; the old one stays");
  }
}

void Server::tick() {
  if (g_hangup.exchange(false)) reload();
  service_->tick();
  if (loaded_.engine && outcome_) {
    if (const auto failure = loaded_.engine->failure()) {
      if (!std::exchange(failing_, true)) return;  // the next time what it told all is here
      // All have been told; who restarts the process gets a device that works again, or another.
      outcome_ = unavailable(*failure);
      log_error(*failure);
      stop_behind_replies();
      return;
    }
  }
  if (interrupted() && !draining_) {
    draining_ = true;
    const auto limit =
        std::chrono::milliseconds(static_cast<int64_t>(options_.shutdown_timeout * 1000));
    service_->drain(std::chrono::steady_clock::now() + limit);
  }
  // While it loads there is nothing to wait for, but the loader itself can't be stopped.
  if (draining_ && service_->drained()) {
    log_info("bye");
    stop_behind_replies();
  }
}

// One more turn, so that what was answered last is on its way.
void Server::stop_behind_replies() {
  http_->post([this] { http_->post([this] { http_->stop(); }); });
}

Status Server::run() {
  directory_ = NIBBLE_TRY(resolve_model(options_.model));
  command_line_keys_ = options_.service.access.api_keys;
  if (!options_.api_key_file.empty()) {
    auto keys = read_key_file(options_.api_key_file);
    if (!keys) return tl::unexpected(std::move(keys).error().with_context("--api_key_file"));
    for (std::string& key : *keys) options_.service.access.api_keys.push_back(std::move(key));
  }
  for (const std::string& note : options_.notes) log_info(note);
  log_info("nibble " + options_.service.version + " serves " + options_.model);
  const RankOptions ranks = NIBBLE_TRY(apply(options_.parallel, &options_.model_options));
  if (options_.dry_run) {
    return print_plan();
  }
  ranks_ = NIBBLE_TRY(RankGroup::start(directory_, options_.model_options, ranks));
  if (ranks_->is_worker()) return ranks_->serve();
  options_.model_options.shard = ranks_->shard();  // an MPI job has its own size
  log_info("configuration: " + to_text(effective_configuration()));
  service_ = std::make_unique<Service>(options_.service);
  auto listening = HttpServer::listen(options_.http, *service_);
  if (!listening) {
    ranks_->give_up(listening.error().message);
    return tl::unexpected(std::move(listening).error());
  }
  http_ = *std::move(listening);
  service_->attach(*http_);
  LoadProgress progress;
  progress.bytes_total = weight_bytes(directory_);
  service_->set_progress(progress);
  (void)std::signal(SIGHUP, on_hangup);
  const char* scheme = options_.http.certificate_file.empty() ? "http" : "https";
  std::string address = fmt::format("{}://{}:{}", scheme, options_.http.host, http_->port());
  if (!options_.http.unix_socket.empty()) address = "unix:" + options_.http.unix_socket;
  log_info("listening on " + address);
  print(fmt::format("nibble serves {} on {}; Ctrl-C ends\n", options_.model, address));
  (void)std::fflush(stdout);
  loader_ = std::thread([this] {
    auto result = std::make_shared<Result<Loaded>>(load());
    http_->post([this, result] { take_over(std::move(*result)); });
  });
  http_->run(std::chrono::milliseconds(50), [this] { tick(); });
  loader_.join();
  // Nobody is answered any more: the engine lets go of its requests, they of their connections.
  if (loaded_.engine) loaded_.engine->shutdown();
  service_.reset();
  http_.reset();
  return outcome_;
}

void add_options(CLI::App& command, ServeOptions* options,
                 std::map<std::string, std::string>* given) {
  for (const ServeSetting& setting : serve_settings()) {
    if (setting.name.empty()) continue;
    std::string names = "--" + setting.name;
    for (const std::string& alias : setting.aliases) names += ",--" + alias;
    if (setting.value_name.empty()) {
      const auto set = [given, &setting](bool positive) {
        return [given, &setting, positive](int64_t count) {  // --NAME=false counts -1
          (*given)[setting.name] = (count > 0) == positive ? "true" : "false";
        };
      };
      command.add_flag_function(names, set(true), setting.help)->group(setting.group);
      command.add_flag_function("--no-" + setting.name, set(false))->group("");
    } else {
      command
          .add_option_function<std::string>(
              names,
              [given, &setting](const std::string& value) { (*given)[setting.name] = value; },
              setting.help)
          ->type_name(setting.value_name)
          ->take_last()
          ->group(setting.group);
    }
  }
  command
      .add_option("--config,--extra_llm_api_options", options->config_file,
                  "YAML file with any of these, and trtllm-serve's keys")
      ->type_name("FILE")
      ->group("Server");
}

Status serve(ServeOptions options, const std::map<std::string, std::string>& given) {
  Problems problems;
  problems.add(apply_environment(&options));
  for (const auto& [name, value] : given) {
    const Status status = find_serve_setting(name)->set(options, value);
    problems.add(with_context(status, "--" + name));
  }
  if (!options.config_file.empty()) {
    Status status = apply_config_file(options.config_file, given, &options);
    if (!status && status.error().code == ErrorCode::kNotFound) return status;
    problems.add(status);
  }
  NIBBLE_TRY(problems.status());
  NIBBLE_TRY(check_serve_options(&options));
  options.service.version = NIBBLE_VERSION;
  options.service.commit = build_commit();
  return Server(std::move(options)).run();
}

}  // namespace

void add_serve_command(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serve a model over HTTP, as OpenAI's API");
  command->footer(kFooter);
  auto options = std::make_shared<ServeOptions>();
  auto given = std::make_shared<std::map<std::string, std::string>>();
  command->add_option("MODEL", options->model, "Checkpoint directory, or a model's name [demo]");
  add_options(*command, options.get(), given.get());
  command->callback([command, options, given, exit_code] {
    // An operator reads the log: its default is more than that of other commands.
    const auto asked = [](const CLI::App* one) {
      return one->get_option("--log-level")->count() > 0;
    };
    if (!asked(command) && !asked(command->get_parent())) set_log_level(LogLevel::kInfo);
    *exit_code = report_status(serve(*options, *given), "serve");
  });
}

}  // namespace nibble
