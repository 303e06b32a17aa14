// The routes that are answered at once: state, models, token ids, the operator's.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/server/embedded.h"
#include "nibble/server/json_fields.h"
#include "nibble/server/service.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

// 503 with how far loading is.
void Service::refuse_loading(const Call& call) {
  LoadProgress progress;
  {
    const std::lock_guard lock(progress_mutex_);
    progress = progress_;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double share = progress.bytes_total == 0 ? 0
                                                 : static_cast<double>(progress.bytes_loaded) /
                                                       static_cast<double>(progress.bytes_total);
  std::string message =
      fmt::format("model is loading: {:.0f}% ({} of {})", 100 * share,
                  format_bytes(progress.bytes_loaded), format_bytes(progress.bytes_total));
  Json eta = nullptr;
  constexpr double kEnoughToGuess = 0.01;
  if (share > kEnoughToGuess) {
    const double left = seconds / share - seconds;
    message += fmt::format(", about {} left", format_duration(left));
    eta = std::llround(left);
  }
  HttpResponse response =
      error_response(unavailable_error(std::move(message), "loading", "1"), call.anthropic);
  Json body = Json::parse(response.body);
  body["progress"] = {{"state", "loading"},
                      {"phase", progress.phase},
                      {"bytes_loaded", progress.bytes_loaded},
                      {"bytes_total", progress.bytes_total},
                      {"eta_seconds", std::move(eta)}};
  response.body = body.dump() + "\n";
  respond(call, std::move(response));
}

void Service::health(const Call& call, bool ready_only) {
  if (!ready_) return refuse_loading(call);
  if (stalled())
    return refuse(call, unavailable_error("the engine makes no progress", "stalled", "5"));
  if (ready_only && draining_) {
    return refuse(call, unavailable_error("the server is shutting down", "shutting_down", "5"));
  }
  if (ready_only && num_answers() >= options_.max_batch_size + options_.max_queue_size) {
    return refuse(
        call, unavailable_error("the queue is full", "queue_full", std::to_string(retry_after())));
  }
  respond_json(call, R"({"status":"ok"})");
}

void Service::metrics_page(const Call& call) {
  EngineStats stats;
  if (shared_.engine != nullptr) stats = shared_.engine->stats();
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  ServerFacts facts;
  if (shared_.engine != nullptr) {
    if (auto report = shared_.engine->memory()) facts.memory = *std::move(report);
  }
  if (!served_.model.names.empty()) facts.model_name = served_.model.names.front();
  facts.state = state();
  facts.version = options_.version;
  facts.commit = options_.commit;
  facts.num_waiting = std::max<int64_t>(0, num_answers() - options_.max_batch_size);
  facts.num_connections = server_->num_connections();
  facts.device = served_.device;
  facts.block_size = served_.block_size;
  facts.weight_bytes = served_.weight_bytes;
  facts.kv_cache_bytes = served_.kv_cache_bytes;
  {
    const std::lock_guard lock(progress_mutex_);
    facts.load_bytes = ready_ ? progress_.bytes_total : progress_.bytes_loaded;
    facts.load_bytes_total = progress_.bytes_total;
  }
  response.body = metrics_.print(stats, facts);
  respond(call, std::move(response));
}

void Service::models(const Call& call) {
  const auto entry = [&](const std::string& name) {
    return Json{{"id", name},
                {"object", "model"},
                {"created", created_},
                {"owned_by", "nibble"},
                {"root", served_.model.names.front()},
                {"parent", nullptr},
                {"max_model_len", served_.model.max_seq_len}};
  };
  const std::string& path = call.request.path;
  if (path == "/v1/models") {
    Json list = Json::array();
    for (const std::string& name : served_.model.names) list.push_back(entry(name));
    return respond_json(call, Json{{"object", "list"}, {"data", std::move(list)}}.dump());
  }
  std::string name = path.substr(std::string_view("/v1/models/").size());
  for (size_t at = name.find("%2F"); at != std::string::npos; at = name.find("%2F")) {
    name.replace(at, 3, "/");
  }
  if (!served_.model.serves(name)) {
    ApiError error = not_found_error(
        fmt::format("the model '{}' is not served here", printable_path(name)), "model_not_found");
    error.param = "model";
    return refuse(call, error);
  }
  respond_json(call, entry(name).dump());
}

void Service::tokenize(const Call& call) {
  const auto body = parse_request_json(call.request.body);
  if (!body) return refuse(call, body.error());
  auto ids = read_prompt_ids(*body, served_.model);
  if (!ids) return refuse(call, std::move(ids).error());
  Json json = {
      {"count", ids->size()}, {"max_model_len", served_.model.max_seq_len}, {"tokens", *ids}};
  json["token_strs"] = nullptr;
  const auto strings = body->find("return_token_strs");
  if (strings != body->end() && *strings == true) {
    Json list = Json::array();
    for (const int32_t id : *ids) list.push_back(token_text(*served_.model.tokenizer, id));
    json["token_strs"] = std::move(list);
  }
  respond_json(call, json.dump());
}

void Service::detokenize(const Call& call) {
  const auto body = parse_request_json(call.request.body);
  if (!body) return refuse(call, body.error());
  JsonFields fields(*body);
  const auto tokens = fields.integers("tokens");
  if (!tokens) return refuse(call, tokens.error());
  if (fields.find("tokens") == nullptr) {
    return refuse(call, bad_request("tokens is missing", "missing_field", "tokens"));
  }
  const auto skip = fields.boolean("skip_special_tokens");
  if (!skip) return refuse(call, skip.error());
  std::vector<int32_t> ids;
  for (const int64_t id : *tokens) {
    if (id < 0 || id >= served_.model.vocab_size) {
      return refuse(call, out_of_range("tokens", fmt::format("a token id is {}, expected 0..{}", id,
                                                             served_.model.vocab_size - 1)));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  respond_json(
      call, Json{{"prompt", served_.model.tokenizer->decode(ids, skip->value_or(false))}}.dump());
}

void Service::count_tokens(const Call& call) {
  const auto body = parse_request_json(call.request.body);
  if (!body) return refuse(call, body.error());
  auto chat = messages_to_chat(*body);
  if (!chat) return refuse(call, std::move(chat).error());
  auto ids = read_prompt_ids(*chat, served_.model);
  if (!ids) return refuse(call, std::move(ids).error());
  respond_json(call, Json{{"input_tokens", ids->size()}}.dump());
}

void Service::chat_page(const Call& call) {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
      "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
      "frame-ancestors 'none'");
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  response.body = kChatPageHtml;
  respond(call, std::move(response));
}

void Service::health_generate(const Call& call) {
  GenerationRequest probe;
  probe.api = Api::kCompletions;
  probe.parse_reply = false;
  probe.model = served_.model.names.front();
  probe.prompts = {{static_cast<int32_t>(served_.model.tokenizer->bos_id().value_or(0))}};
  probe.params.max_tokens = 1;
  start_generation(call, std::move(probe));
}

void Service::admin(const Call& call) {
  const auto body = parse_request_json(call.request.body.empty() ? "{}" : call.request.body);
  if (!body) return refuse(call, body.error());
  JsonFields fields(*body);
  if (call.request.path == "/admin/log_level") {
    const auto level = fields.text("level");
    if (!level) return refuse(call, level.error());
    const auto parsed = parse_log_level(level->value_or(""));
    if (!parsed) return refuse(call, out_of_range("level", parsed.error().message));
    set_log_level(*parsed);
    return respond_json(call, R"({"status":"ok"})");
  }
  if (call.request.path == "/admin/reset_prefix_cache") {
    shared_.engine->reset_prefix_cache();
    return respond_json(call, R"({"status":"ok"})");
  }
  const auto id = fields.text("request_id");
  if (!id) return refuse(call, id.error());
  abort_request(call, id->value_or(""));
}

void Service::abort_request(const Call& call, const std::string& request_id) {
  std::vector<std::shared_ptr<Generation>> found;
  for (const auto& [key, active] : active_) {
    if (active.generation->request_id() == request_id) found.push_back(active.generation);
  }
  if (found.empty()) return refuse(call, not_found_error("no such request is running"));
  for (const auto& generation : found) {
    generation->fail(unavailable_error("the request was ended by the operator", "aborted", "1"));
  }
  respond_json(call, R"({"status":"ok"})");
}

void Service::summary() {
  const auto now = Clock::now();
  const EngineStats stats = shared_.engine->stats();
  const double seconds = std::chrono::duration<double>(now - last_summary_).count();
  const EngineStats& before = summary_stats_;
  if (stats.num_steps != before.num_steps) {
    const auto rate = [&](int64_t a, int64_t b) { return static_cast<double>(a - b) / seconds; };
    const double looked_up = static_cast<double>(stats.num_prompt_tokens + stats.num_cached_tokens);
    log_info(fmt::format(
        "engine running={} waiting={} kv={:.0f}% prefill_tok/s={:.0f} decode_tok/s={:.0f} "
        "accept={:.1f} prefix_hit={:.0f}%",
        stats.num_running, stats.num_waiting,
        100.0 * static_cast<double>(stats.num_used_blocks) /
            static_cast<double>(std::max<int64_t>(stats.num_blocks, 1)),
        rate(stats.num_prompt_tokens, before.num_prompt_tokens),
        rate(stats.num_generated_tokens, before.num_generated_tokens), stats.acceptance_length(),
        looked_up > 0 ? 100.0 * static_cast<double>(stats.num_cached_tokens) / looked_up : 0));
  }
  summary_stats_ = stats;
  last_summary_ = now;
}

}  // namespace nibble
