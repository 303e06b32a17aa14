// Any server with OpenAI's API as the target of a run.
#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/eval/http_client.h"
#include "nibble/eval/target.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr double kLongestPause = 60;  // seconds between two tries
constexpr double kStopGrace = 10;     // seconds that running requests get after an interrupt
constexpr double kFirstTimeout = 10;  // seconds for the list of models

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string text_in(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

int64_t number_in(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

class HttpTarget : public CompletionTarget {
 public:
  HttpTarget(HttpUrl url, HttpTargetOptions options)
      : url_(std::move(url)), options_(std::move(options)) {
    if (!url_.prefix.ends_with("/v1")) url_.prefix += "/v1";
    if (!options_.api_key.empty()) {
      headers_.emplace_back("Authorization", "Bearer " + options_.api_key);
    }
  }

  ~HttpTarget() override {
    stop_ = true;
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    todo_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  HttpTarget(const HttpTarget&) = delete;
  HttpTarget& operator=(const HttpTarget&) = delete;

  // Finds the model, so that a wrong address is told before anything is asked.
  Status start() {
    extra_ = options_.extra_body.empty() ? Json::object()
                                         : Json::parse(options_.extra_body, nullptr, false);
    if (!extra_.is_object()) {
      return invalid_argument(
          fmt::format("--extra-body is '{}', expected a JSON object", options_.extra_body));
    }
    HttpClient client(url_, &stop_);
    auto reply = client.request("GET", "/models", "", headers_, kFirstTimeout);
    if (!reply) {
      return unavailable(
          fmt::format("{} does not answer: {}", options_.base_url, reply.error().message));
    }
    if (reply->status == 401 || reply->status == 403) {
      return unavailable(
          fmt::format("{} refuses the API key (HTTP {})", options_.base_url, reply->status));
    }
    const Json models = Json::parse(reply->body, nullptr, false);
    std::vector<std::string> names;
    if (reply->status == 200 && models.is_object() && models.contains("data")) {
      for (const Json& model : models["data"]) names.push_back(text_in(model, "id"));
    }
    if (options_.served_model.empty()) {
      if (names.empty()) {
        return invalid_argument(fmt::format("{} lists no models (HTTP {}): give --served-model",
                                            options_.base_url, reply->status));
      }
      options_.served_model = names.front();
    }
    for (int64_t i = 0; i < options_.concurrency; ++i) {
      threads_.emplace_back([this] { work(); });
    }
    return {};
  }

  Status submit(uint64_t key, const std::string& prompt, const Sampling& sampling,
                int64_t seed) override {
    Json body = {{"model", options_.served_model}};
    if (sampling.raw_prompt) {
      body["prompt"] = prompt;
    } else {
      body["messages"] = Json::array({{{"role", "user"}, {"content", prompt}}});
    }
    body["temperature"] = sampling.temperature;
    body["top_p"] = sampling.top_p;
    body["max_tokens"] = sampling.max_tokens;
    body["seed"] = seed;
    if (!sampling.stop.empty()) body["stop"] = sampling.stop;
    for (const auto& [name, value] : extra_.items()) body[name] = value;
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(
          {key, body.dump(-1, ' ', false, Json::error_handler_t::replace), sampling.raw_prompt});
    }
    todo_.notify_one();
    return {};
  }

  Result<std::vector<std::pair<uint64_t, Completion>>> wait() override {
    std::unique_lock lock(mutex_);
    (void)done_.wait_for(lock, std::chrono::milliseconds(200),
                         [&] { return !finished_.empty() || !lost_.empty(); });
    if (finished_.empty() && !lost_.empty()) {
      return unavailable(fmt::format("{} is gone: {}", options_.base_url, lost_));
    }
    return std::exchange(finished_, {});
  }

  std::vector<std::pair<uint64_t, Completion>> drain() override {
    std::unique_lock lock(mutex_);
    queue_.clear();
    is_closing_ = true;
    (void)done_.wait_for(lock, std::chrono::duration<double>(kStopGrace),
                         [&] { return num_running_ == 0; });
    return std::exchange(finished_, {});
  }

  int64_t num_tokens() const override {
    const std::lock_guard lock(mutex_);
    return num_tokens_;
  }

  // The address may change between a run and its continuation, the model may not.
  std::string identity() const override {
    Json identity = {{"target", "http"}, {"model", options_.served_model}};
    if (!extra_.empty()) identity["extra_body"] = extra_;
    return identity.dump();
  }

 private:
  struct Question {
    uint64_t key = 0;
    std::string body;
    bool raw_prompt = false;
  };

  void work() {
    HttpClient client(url_, &stop_);
    for (;;) {
      Question question;
      {
        std::unique_lock lock(mutex_);
        todo_.wait(lock, [&] { return is_closing_ || !queue_.empty(); });
        if (is_closing_) return;
        question = std::move(queue_.front());
        queue_.pop_front();
        ++num_running_;
      }
      auto completion = ask(client, question);
      {
        const std::lock_guard lock(mutex_);
        --num_running_;
        if (completion) {
          num_tokens_ += completion->completion_tokens;
          finished_.emplace_back(question.key, *std::move(completion));
        } else if (completion.error().code == ErrorCode::kUnavailable) {
          lost_ = completion.error().message;
        }
      }
      done_.notify_all();
    }
  }

  // Sleeps, but not on after stop_.
  bool pause(double seconds) const {
    const auto start = Clock::now();
    while (seconds_since(start) < seconds) {
      if (stop_ || interrupted()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return true;
  }

  // Errors: kUnavailable when no try could connect, kCancelled.
  Result<Completion> ask(HttpClient& client, const Question& question) const {
    Completion completion;
    const auto start = Clock::now();
    const char* path = question.raw_prompt ? "/completions" : "/chat/completions";
    bool connected = false;
    for (int attempt = 0;; ++attempt) {
      completion.retries = attempt;
      double wait = std::min(kLongestPause, 0.5 * static_cast<double>(1 << std::min(attempt, 10)));
      auto reply = client.request("POST", path, question.body, headers_, options_.request_timeout);
      if (reply) {
        connected = true;
        if (reply->status == 200) {
          if (read(reply->body, question.raw_prompt, &completion)) {
            completion.total_ms = 1000 * seconds_since(start);
            return completion;
          }
          completion.error = "the reply is no completion: " + reply->body.substr(0, 200);
        } else {
          completion.error = fmt::format("HTTP {}: {}", reply->status, reply->body.substr(0, 300));
          // Asking the same again helps only where the server is busy or broken.
          const bool temporary = reply->status == 408 || reply->status == 409 ||
                                 reply->status == 429 || reply->status >= 500;
          if (!temporary) break;
        }
        if (reply->retry_after > 0) wait = std::min(kLongestPause, reply->retry_after);
      } else {
        if (reply.error().code == ErrorCode::kCancelled) return tl::unexpected(reply.error());
        connected |= reply.error().code != ErrorCode::kUnavailable;
        completion.error = reply.error().message;
      }
      if (attempt >= options_.retries) break;
      if (!pause(wait)) return cancelled("interrupted");
    }
    if (!connected) return unavailable(completion.error);
    completion.finish_reason = "error";
    completion.total_ms = 1000 * seconds_since(start);
    return completion;
  }

  static bool read(const std::string& text, bool raw, Completion* completion) {
    const Json json = Json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains("choices") || !json["choices"].is_array() ||
        json["choices"].empty() || !json["choices"][0].is_object()) {
      return false;
    }
    const Json& choice = json["choices"][0];
    completion->error.clear();
    completion->finish_reason = text_in(choice, "finish_reason");
    if (json.contains("usage") && json["usage"].is_object()) {
      completion->prompt_tokens = number_in(json["usage"], "prompt_tokens");
      completion->completion_tokens = number_in(json["usage"], "completion_tokens");
      const Json& usage = json["usage"];
      if (usage.contains("completion_tokens_details") &&
          usage["completion_tokens_details"].is_object() &&
          usage["completion_tokens_details"].contains("reasoning_tokens")) {
        completion->reasoning_tokens =
            number_in(usage["completion_tokens_details"], "reasoning_tokens");
      }
    }
    if (raw) {
      split_reply(text_in(choice, "text"), false, completion);
      return true;
    }
    if (!choice.contains("message") || !choice["message"].is_object()) return false;
    const Json& message = choice["message"];
    std::string reasoning = text_in(message, "reasoning_content");
    if (reasoning.empty()) reasoning = text_in(message, "reasoning");
    std::string content = text_in(message, "content");
    if (reasoning.empty()) {
      split_reply(std::move(content), false, completion);
      return true;
    }
    // Reasoning without content: the thinking was never closed.
    completion->is_unclosed = content.empty() && completion->finish_reason == "length";
    completion->reasoning = std::move(reasoning);
    completion->text = std::move(content);
    return true;
  }

  HttpUrl url_;
  HttpTargetOptions options_;
  HttpClient::Headers headers_;
  Json extra_;
  std::atomic<bool> stop_ = false;

  mutable std::mutex mutex_;
  std::condition_variable todo_, done_;
  std::deque<Question> queue_;
  std::vector<std::pair<uint64_t, Completion>> finished_;
  std::string lost_;
  int64_t num_running_ = 0;
  int64_t num_tokens_ = 0;
  bool is_closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<CompletionTarget>> make_http_target(const HttpTargetOptions& options) {
  HttpUrl url = NIBBLE_TRY(parse_http_url(options.base_url));
  auto target = std::make_unique<HttpTarget>(std::move(url), options);
  NIBBLE_TRY(target->start());
  return target;
}

}  // namespace nibble
