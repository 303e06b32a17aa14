#include "nibble/server/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/server/embedded.h"
#include "nibble/server/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kLargeBody = 256 << 10;  // read on a thread of its own

struct Route {
  std::string_view path;
  std::string_view methods;
  bool open;  // without a key
};

constexpr Route kRoutes[] = {
    {"/v1/chat/completions", "POST", false},
    {"/v1/completions", "POST", false},
    {"/v1/messages", "POST", false},
    {"/v1/messages/count_tokens", "POST", false},
    {"/v1/responses", "POST", false},
    {"/v1/models", "GET", false},
    {"/tokenize", "POST", false},
    {"/v1/tokenize", "POST", false},
    {"/detokenize", "POST", false},
    {"/v1/detokenize", "POST", false},
    {"/live", "GET", true},
    {"/health", "GET", true},
    {"/ping", "GET", true},
    {"/health_generate", "GET", false},
    {"/ready", "GET", true},
    {"/version", "GET", true},
    {"/metrics", "GET", true},
    {"/prometheus/metrics", "GET", true},
    {"/server_info", "GET", false},
    {"/openapi.json", "GET", true},
    {"/admin/abort", "POST", false},
    {"/admin/log_level", "POST", false},
    {"/", "GET", true},
};

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

ApiError not_found_error(std::string message, std::string code = "") {
  ApiError error = bad_request(std::move(message), std::move(code));
  error.status = 404;
  error.type = "not_found_error";
  return error;
}

ApiError unavailable_error(std::string message, std::string code, std::string_view retry_after) {
  ApiError error = bad_request(std::move(message), std::move(code));
  error.status = 503;
  error.type = "service_unavailable";
  error.headers.emplace_back("Retry-After", std::string(retry_after));
  return error;
}

bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

std::string printable_path(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 200)) out += c > ' ' && c < 0x7f ? c : '?';
  return out;
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned>(a[i] ^ other);
  }
  return difference == 0;
}

Service::Service(ServiceOptions options)
    : options_(std::move(options)),
      start_(Clock::now()),
      last_progress_(start_),
      last_summary_(start_) {
  shared_.model = &model_;
  shared_.metrics = &metrics_;
  shared_.keepalive_interval = options_.keepalive_interval;
  shared_.queue_timeout = options_.queue_timeout;
  shared_.log_prompts = options_.log_prompts;
  shared_.log_json = options_.log_json;
  shared_.fingerprint = fmt::format("nibble-{}{}{}", options_.version,
                                    options_.commit.empty() ? "" : "-", options_.commit);
  created_ = std::chrono::duration_cast<std::chrono::seconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
}

Service::~Service() = default;

void Service::attach(HttpServer& server) {
  server_ = &server;
  shared_.post = [&server](std::function<void()> task) { server.post(std::move(task)); };
}

void Service::become_ready(EngineThread& engine, ServedModel model, std::string server_info) {
  shared_.engine = &engine;
  model_ = std::move(model);
  server_info_ = std::move(server_info);
  last_progress_ = Clock::now();
  ready_ = true;
}

void Service::set_progress(const LoadProgress& progress) {
  const std::lock_guard lock(progress_mutex_);
  progress_ = progress;
}

std::string_view Service::state() const {
  return draining_ ? "draining" : ready_ ? "ready" : "loading";
}

int64_t Service::num_answers() const {
  int64_t count = 0;
  for (const auto& [key, active] : active_) count += active.generation->num_answers();
  return count;
}

int64_t Service::retry_after() const {
  if (completions_.empty()) return 1;
  const int64_t waiting = std::max<int64_t>(0, num_answers() - options_.max_batch_size);
  const double rate = static_cast<double>(completions_.size()) / 30.0;
  const double wait = std::ceil(static_cast<double>(waiting + 1) / rate);
  return static_cast<int64_t>(std::clamp(wait, 1.0, 60.0));
}

HttpResponse Service::refusal(int status, std::string_view message) {
  ApiError error = bad_request(std::string(message));
  error.status = status;
  if (status == 408) error.type = "timeout_error";
  if (status == 413) error.code = "request_too_large";
  metrics_.count_request("", status);
  HttpResponse response = error_response(error);
  response.headers.emplace_back("x-request-id", random_id("req-"));
  return response;
}

void Service::add_cors(const HttpRequest& request, HttpHeaders* headers) const {
  const std::string_view origin = request.header("Origin");
  if (origin.empty() || options_.cors_origins.empty()) return;
  const auto& allowed = options_.cors_origins;
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return;
  headers->emplace_back("Access-Control-Allow-Origin", any ? "*" : std::string(origin));
  if (!any) headers->emplace_back("Vary", "Origin");
  headers->emplace_back("Access-Control-Expose-Headers", "x-request-id, x-nibble-ignored-fields");
  if (request.method != "OPTIONS") return;
  headers->emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  const std::string_view wanted = request.header("Access-Control-Request-Headers");
  headers->emplace_back(
      "Access-Control-Allow-Headers",
      wanted.empty() ? "authorization, content-type, x-api-key" : std::string(wanted));
  headers->emplace_back("Access-Control-Max-Age", "600");
}

void Service::handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  Call call;
  const std::string_view given = request.header("X-Request-Id");
  call.request_id = is_request_id(given) ? std::string(given) : random_id("req-");
  call.headers.emplace_back("x-request-id", call.request_id);
  call.anthropic = request.path.starts_with("/v1/messages");
  add_cors(request, &call.headers);
  call.request = std::move(request);
  call.reply = reply;
  const HttpHeaders headers = call.headers;
  const bool anthropic = call.anthropic;
  const auto answer = [&](const ApiError& error) {
    HttpResponse response = error_response(error, anthropic);
    response.headers.insert(response.headers.end(), headers.begin(), headers.end());
    reply->send(std::move(response));
  };
  try {
    route(std::move(call));
  } catch (const nlohmann::json::exception& error) {
    answer(bad_request(fmt::format("a field is malformed: {}", error.what()), "invalid_type"));
  } catch (const std::bad_alloc&) {
    answer(unavailable_error("out of memory", "out_of_memory", "5"));
  }
}

void Service::respond(const Call& call, HttpResponse response) {
  metrics_.count_request(find_route(call.request.path) != nullptr ? call.request.path : "other",
                         response.status);
  response.headers.insert(response.headers.end(), call.headers.begin(), call.headers.end());
  if (draining_) response.close = true;
  if (response.status >= 400 && response.status != 503) {
    log_debug(fmt::format("request id={} client={} route={} status={}", call.request_id,
                          call.request.client, call.request.path, response.status));
  }
  call.reply->send(std::move(response));
}

void Service::respond_json(const Call& call, std::string body) {
  HttpResponse response;
  response.body = std::move(body) + "\n";
  respond(call, std::move(response));
}

void Service::refuse(const Call& call, const ApiError& error) {
  respond(call, error_response(error, call.anthropic));
}

std::optional<ApiError> Service::authorize(Call& call) const {
  const std::string& path = call.request.path;
  std::string_view key = call.request.header("x-api-key");
  const std::string_view bearer = call.request.header("Authorization");
  if (key.empty() && bearer.size() > 7 && (bearer[0] == 'B' || bearer[0] == 'b')) {
    key = bearer.substr(7);
  }
  call.key = key;
  ApiError wrong = bad_request("the API key is missing or wrong; send it as Authorization: Bearer",
                               "invalid_api_key");
  wrong.status = 401;
  wrong.type = "authentication_error";
  wrong.headers.emplace_back("WWW-Authenticate", "Bearer");
  bool known = false;
  // All of them are compared, so that the time tells nothing.
  for (const std::string& one : options_.api_keys) known |= equal_in_constant_time(key, one);
  if (path.starts_with("/admin/")) {
    if (options_.admin_api_key.empty()) return not_found_error("there is no such route");
    if (equal_in_constant_time(key, options_.admin_api_key)) return std::nullopt;
    if (!known) return wrong;
    wrong.status = 403;
    wrong.type = "permission_error";
    wrong.code = "";
    wrong.message = "this key may not use /admin";
    wrong.headers.clear();
    return wrong;
  }
  const Route* route = find_route(path);
  const bool is_metrics = path == "/metrics" || path == "/prometheus/metrics";
  const bool open = route != nullptr && route->open && !(is_metrics && options_.protect_metrics);
  if (options_.api_keys.empty() || open || known) return std::nullopt;
  return wrong;
}

void Service::route(Call call) {
  const std::string& method = call.request.method;
  const std::string& path = call.request.path;
  if (method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    response.content_type = "";
    return respond(call, std::move(response));
  }
  if (auto error = authorize(call)) return refuse(call, *std::move(error));
  const bool is_model = path.starts_with("/v1/models/");
  const Route* route = is_model ? find_route("/v1/models") : find_route(path);
  const bool no_metrics = !options_.metrics && path.ends_with("/metrics");
  if (path.starts_with("/v1/responses/")) {
    return refuse(call, not_found_error("responses are not stored here"));
  }
  if (route == nullptr || no_metrics || (path == "/" && !options_.web_ui)) {
    return refuse(call, not_found_error(fmt::format("there is no route {}", printable_path(path)),
                                        "unknown_route"));
  }
  if (method != route->methods) {
    ApiError error = bad_request(fmt::format("{} takes {} only", route->path, route->methods));
    error.status = 405;
    error.headers.emplace_back("Allow",
                               route->methods == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS");
    return refuse(call, std::move(error));
  }
  if (path == "/live") {
    if (!stalled()) return respond_json(call, R"({"status":"ok"})");
    return refuse(call, unavailable_error("the engine makes no progress", "stalled", "5"));
  }
  if (path == "/version") {
    return respond_json(
        call,
        Json{{"version", options_.version}, {"commit", options_.commit}, {"api", "v1"}}.dump());
  }
  if (path == "/ready") return health(call, true);
  if (path == "/metrics" || path == "/prometheus/metrics") return metrics_page(call);
  if (path == "/health" || path == "/ping") return health(call, false);
  if (path == "/openapi.json") return respond_json(call, std::string(kOpenApiJson));
  if (path == "/") {
    HttpResponse response;
    response.content_type = "text/html; charset=utf-8";
    response.headers.emplace_back(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'");
    response.headers.emplace_back("X-Content-Type-Options", "nosniff");
    response.body = kChatPageHtml;
    return respond(call, std::move(response));
  }
  if (!ready_) {
    HttpResponse response = error_response(not_ready(), call.anthropic);
    const std::lock_guard lock(progress_mutex_);
    Json body = Json::parse(response.body);
    body["progress"] = {{"state", "loading"},
                        {"phase", progress_.phase},
                        {"bytes_loaded", progress_.bytes_loaded},
                        {"bytes_total", progress_.bytes_total}};
    response.body = body.dump() + "\n";
    return respond(call, std::move(response));
  }
  if (path == "/v1/chat/completions") return generate(std::move(call), Api::kChat);
  if (path == "/v1/completions") return generate(std::move(call), Api::kCompletions);
  if (path == "/v1/messages") return generate(std::move(call), Api::kMessages);
  if (path == "/v1/responses") return generate(std::move(call), Api::kResponses);
  if (path == "/v1/messages/count_tokens") return count_tokens(call);
  if (path == "/v1/models" || is_model) return models(call);
  if (path.ends_with("/tokenize")) return tokenize(call);
  if (path.ends_with("/detokenize")) return detokenize(call);
  if (path == "/server_info") return respond_json(call, server_info_);
  if (path == "/health_generate") {
    GenerationRequest probe;
    probe.api = Api::kCompletions;
    probe.parse_reply = false;
    probe.model = model_.names.front();
    probe.prompts = {{static_cast<int32_t>(model_.tokenizer->bos_id().value_or(0))}};
    probe.params.max_tokens = 1;
    return start_generation(call, std::move(probe));
  }
  admin(call);
}

ApiError Service::not_ready() const {
  const std::lock_guard lock(progress_mutex_);
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double share = progress_.bytes_total == 0 ? 0
                                                  : static_cast<double>(progress_.bytes_loaded) /
                                                        static_cast<double>(progress_.bytes_total);
  std::string message =
      fmt::format("model is loading: {:.0f}% ({} of {})", 100 * share,
                  format_bytes(progress_.bytes_loaded), format_bytes(progress_.bytes_total));
  if (share > 0.01) {
    message += fmt::format(", about {} left", format_duration(seconds / share - seconds));
  }
  return unavailable_error(std::move(message), "loading", "1");
}

void Service::health(const Call& call, bool ready_only) {
  if (!ready_) return refuse(call, not_ready());
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
  const std::string name = model_.names.empty() ? "" : model_.names.front();
  const int64_t waiting = std::max<int64_t>(0, num_answers() - options_.max_batch_size);
  response.body = metrics_.print(stats, name, state(), waiting, options_.version);
  respond(call, std::move(response));
}

void Service::models(const Call& call) {
  const auto entry = [&](const std::string& name) {
    return Json{{"id", name},
                {"object", "model"},
                {"created", created_},
                {"owned_by", "nibble"},
                {"root", model_.names.front()},
                {"parent", nullptr},
                {"max_model_len", model_.max_seq_len}};
  };
  const std::string& path = call.request.path;
  if (path == "/v1/models") {
    Json list = Json::array();
    for (const std::string& name : model_.names) list.push_back(entry(name));
    return respond_json(call, Json{{"object", "list"}, {"data", std::move(list)}}.dump());
  }
  std::string name = path.substr(std::string_view("/v1/models/").size());
  for (size_t at = name.find("%2F"); at != std::string::npos; at = name.find("%2F")) {
    name.replace(at, 3, "/");
  }
  if (!model_.serves(name)) {
    ApiError error = not_found_error(
        fmt::format("the model '{}' is not served here", printable_path(name)), "model_not_found");
    error.param = "model";
    return refuse(call, std::move(error));
  }
  respond_json(call, entry(name).dump());
}

void Service::tokenize(const Call& call) {
  const auto body = parse_request_json(call.request.body);
  if (!body) return refuse(call, body.error());
  auto ids = read_prompt_ids(*body, model_);
  if (!ids) return refuse(call, std::move(ids).error());
  Json json = {{"count", ids->size()}, {"max_model_len", model_.max_seq_len}, {"tokens", *ids}};
  json["token_strs"] = nullptr;
  const auto strings = body->find("return_token_strs");
  if (strings != body->end() && *strings == true) {
    Json list = Json::array();
    for (const int32_t id : *ids) list.push_back(token_text(*model_.tokenizer, id));
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
    if (id < 0 || id >= model_.vocab_size) {
      return refuse(call, out_of_range("tokens", fmt::format("a token id is {}, expected 0..{}", id,
                                                             model_.vocab_size - 1)));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  respond_json(call, Json{{"prompt", model_.tokenizer->decode(ids, skip->value_or(false))}}.dump());
}

void Service::count_tokens(const Call& call) {
  const auto body = parse_request_json(call.request.body);
  if (!body) return refuse(call, body.error());
  auto chat = messages_to_chat(*body);
  if (!chat) return refuse(call, std::move(chat).error());
  auto ids = read_prompt_ids(*chat, model_);
  if (!ids) return refuse(call, std::move(ids).error());
  respond_json(call, Json{{"input_tokens", ids->size()}}.dump());
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
  const auto id = fields.text("request_id");
  if (!id) return refuse(call, id.error());
  std::vector<std::shared_ptr<Generation>> found;
  for (const auto& [key, active] : active_) {
    if (active.generation->request_id() == id->value_or("")) found.push_back(active.generation);
  }
  if (found.empty()) return refuse(call, not_found_error("no such request is running"));
  for (const auto& generation : found) {
    generation->fail(unavailable_error("the request was ended by the operator", "aborted", "1"));
  }
  respond_json(call, R"({"status":"ok"})");
}

std::optional<ApiError> Service::admit(int64_t answers, const std::string& key) {
  if (draining_) {
    return unavailable_error("the server is shutting down", "shutting_down", "5");
  }
  if (num_answers() + answers > options_.max_batch_size + options_.max_queue_size) {
    metrics_.count_rejected();
    ApiError error = bad_request("the queue is full; try again later", "queue_full");
    error.status = 429;
    error.type = "rate_limit_error";
    error.headers.emplace_back("Retry-After", std::to_string(retry_after()));
    return error;
  }
  if (options_.max_requests_per_key > 0) {
    const auto same = std::count_if(active_.begin(), active_.end(),
                                    [&](const auto& entry) { return entry.second.key == key; });
    if (same >= options_.max_requests_per_key) {
      metrics_.count_rejected();
      ApiError error = bad_request(
          fmt::format("this key has {} requests at once, which is its limit", same), "key_limit");
      error.status = 429;
      error.type = "rate_limit_error";
      error.headers.emplace_back("Retry-After", "1");
      return error;
    }
  }
  return std::nullopt;
}

void Service::generate(Call call, Api api) {
  if (auto error = admit(1, call.key)) return refuse(call, *std::move(error));
  const auto read = [this, api](const std::string& text) -> ApiResult<GenerationRequest> {
    try {
      const auto body = parse_request_json(text);
      if (!body) return tl::unexpected(body.error());
      switch (api) {
        case Api::kChat:
          return read_chat_request(*body, model_);
        case Api::kCompletions:
          return read_completion_request(*body, model_);
        case Api::kMessages:
          return read_messages_request(*body, model_);
        case Api::kResponses:
          return read_responses_request(*body, model_);
      }
    } catch (const nlohmann::json::exception& error) {
      // A member of the wrong type deep inside; the readers name those that they look at first.
      return tl::unexpected(
          bad_request(fmt::format("a field is malformed: {}", error.what()), "invalid_type"));
    }
    return tl::unexpected(bad_request("no such API"));
  };
  if (call.request.body.size() < kLargeBody) {
    auto request = read(call.request.body);
    if (!request) return refuse(call, std::move(request).error());
    return start_generation(call, *std::move(request));
  }
  // Megabytes of text take a while to tokenize, and the others' streams would wait.
  ++parsing_;
  std::thread([this, read, call = std::move(call)] {
    auto request = std::make_shared<ApiResult<GenerationRequest>>(read(call.request.body));
    server_->post([this, call, request] {
      --parsing_;
      if (!*request) return refuse(call, std::move(*request).error());
      start_generation(call, std::move(**request));
    });
  }).detach();
}

void Service::start_generation(const Call& call, GenerationRequest request) {
  const int64_t each = request.params.best_of.value_or(request.params.n);
  const auto answers = each * static_cast<int64_t>(request.prompts.size());
  if (auto error = admit(answers, call.key)) return refuse(call, *std::move(error));
  GenerationOrigin origin;
  origin.request_id = call.request_id;
  origin.client = call.request.client;
  origin.route = call.request.path;
  origin.headers = call.headers;
  if (options_.request_timeout.count() > 0) origin.timeout = options_.request_timeout;
  const std::string header(call.request.header("X-Request-Timeout"));
  if (!header.empty()) {
    char* end = nullptr;
    const double seconds = std::strtod(header.c_str(), &end);
    if (end != header.c_str() && seconds > 0 && seconds < 1e6) {
      const auto asked = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
      if (!origin.timeout || asked < *origin.timeout) origin.timeout = asked;
    }
  }
  if (!request.ignored_fields.empty()) {
    std::string names;
    for (const std::string& name : request.ignored_fields) {
      if (names.size() > 1000) break;
      names += (names.empty() ? "" : ", ") + printable_path(name);
    }
    origin.headers.emplace_back("x-nibble-ignored-fields", names);
  }
  auto generation =
      std::make_shared<Generation>(shared_, std::move(request), std::move(origin), call.reply);
  active_.emplace(generation.get(), Active{generation, call.key});
  generation->start([this](Generation& ended) {
    completions_.push_back(Clock::now());
    // Not here: the generation is still at work.
    server_->post([this, key = &ended] { active_.erase(key); });
  });
}

bool Service::stalled() const {
  return ready_ && !active_.empty() && Clock::now() - last_progress_ > options_.stall_timeout;
}

void Service::drain(Clock::time_point deadline) {
  if (std::exchange(draining_, true)) return;
  drain_deadline_ = deadline;
  log_info(fmt::format("draining: {} requests are running", active_.size()));
  std::vector<std::shared_ptr<Generation>> waiting;
  const EngineStats stats = shared_.engine != nullptr ? shared_.engine->stats() : EngineStats();
  if (stats.num_waiting == 0) return;
  for (const auto& [key, active] : active_) {
    if (active.generation->is_waiting()) waiting.push_back(active.generation);
  }
  for (const auto& generation : waiting) {
    generation->fail(unavailable_error("the server is shutting down", "shutting_down", "5"));
  }
}

bool Service::drained() const { return draining_ && active_.empty() && parsing_ == 0; }

void Service::tick() {
  const auto now = Clock::now();
  std::vector<std::shared_ptr<Generation>> all;
  all.reserve(active_.size());
  for (const auto& [key, active] : active_) all.push_back(active.generation);
  for (const auto& generation : all) generation->tick(now);
  while (!completions_.empty() && now - completions_.front() > std::chrono::seconds(30)) {
    completions_.pop_front();
  }
  if (draining_ && now > drain_deadline_) {
    ApiError error = unavailable_error("the server shut down before the reply was complete",
                                       "server_shutdown", "5");
    error.type = "server_error";
    for (const auto& generation : all) generation->fail(error);
  }
  if (!ready_) return;
  const EngineStats stats = shared_.engine->stats();
  if (stats.num_steps != last_steps_ || active_.empty()) {
    last_steps_ = stats.num_steps;
    last_progress_ = now;
  }
  if (now - last_summary_ >= std::chrono::seconds(10)) summary();
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
