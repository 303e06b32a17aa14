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
#include "nibble/server/request_log.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kLargeBody = 256 << 10;  // read on a thread of its own

bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

Service::Service(ServiceOptions options)
    : options_(std::move(options)),
      start_(Clock::now()),
      last_progress_(start_),
      last_summary_(start_) {
  shared_.model = &served_.model;
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
  shared_.updates.set_post([&server](UpdateQueue::Task task) { server.post(std::move(task)); });
}

void Service::become_ready(ServedEngine served) {
  served_ = std::move(served);
  served_.model.call_memory = std::make_shared<CallMemory>();
  shared_.engine = served_.engine;
  shared_.engine->set_after_updates([this] { shared_.updates.flush(); });
  last_progress_ = Clock::now();
  ready_since_ = last_progress_;
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
  const double seconds =
      std::clamp(std::chrono::duration<double>(Clock::now() - ready_since_).count(), 1.0, 30.0);
  const double rate = static_cast<double>(completions_.size()) / seconds;
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

void Service::handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  shared_.updates.drain();
  Call call;
  const std::string_view given = request.header("X-Request-Id");
  call.request_id = is_request_id(given) ? std::string(given) : random_id("req-");
  call.headers.emplace_back("x-request-id", call.request_id);
  call.anthropic = request.path.starts_with("/v1/messages");
  call.key = request_key(request);
  add_cors(options_.access, request, &call.headers);
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
  if (response.status >= 400) {
    // Strangers' tries and what a load balancer hears while the model loads would fill the log.
    const bool is_noise = response.status == 401 || response.status == 404 ||
                          response.status == 405 || response.status == 503;
    if (is_noise) {
      log_debug(fmt::format("request id={} client={} route={} status={}", call.request_id,
                            call.request.client, printable_path(call.request.path),
                            response.status));
    } else {
      RequestRecord record;
      record.id = call.request_id;
      record.client = call.request.client;
      record.route = printable_path(call.request.path);
      record.status = response.status;
      record.finish = "refused";
      log_request(record, options_.log_json);
    }
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

void Service::route(Call call) {
  const std::string& method = call.request.method;
  const std::string& path = call.request.path;
  if (method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    response.content_type = "";
    return respond(call, std::move(response));
  }
  if (auto error = authorize(options_.access, call.request)) return refuse(call, *std::move(error));
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
    return refuse(call, error);
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
  if (path == "/") return chat_page(call);
  if (!ready_) return refuse_loading(call);
  if (path == "/v1/chat/completions") return generate(std::move(call), Api::kChat);
  if (path == "/v1/completions") return generate(std::move(call), Api::kCompletions);
  if (path == "/v1/messages") return generate(std::move(call), Api::kMessages);
  if (path == "/v1/responses") return generate(std::move(call), Api::kResponses);
  if (path == "/v1/messages/count_tokens") return count_tokens(call);
  if (path == "/v1/models" || is_model) return models(call);
  if (path.ends_with("/tokenize")) return tokenize(call);
  if (path.ends_with("/detokenize")) return detokenize(call);
  if (path == "/server_info") return respond_json(call, served_.server_info);
  if (path == "/health_generate") return health_generate(call);
  admin(call);
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
          return read_chat_request(*body, served_.model);
        case Api::kCompletions:
          return read_completion_request(*body, served_.model);
        case Api::kMessages:
          return read_messages_request(*body, served_.model);
        case Api::kResponses:
          return read_responses_request(*body, served_.model);
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
  origin.trace_id = trace_id_of(call.request.header("traceparent"));
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
  origin.tell_step_time = call.request.header("X-Nibble-Step-Time") == "1";
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
  // Who has brought nothing yet may be in its first step; the newest are those that wait.
  std::sort(waiting.begin(), waiting.end(),
            [](const auto& one, const auto& other) { return one->arrival() > other->arrival(); });
  int64_t left = stats.num_waiting;
  size_t count = 0;
  while (count < waiting.size() && left > 0) left -= waiting[count++]->num_answers();
  waiting.resize(count);
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

}  // namespace nibble
