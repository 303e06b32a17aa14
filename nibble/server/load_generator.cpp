#include "nibble/server/load_generator.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/short_turns.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;
using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string header_text(const LoadTarget& target, std::string_view method, std::string_view path,
                        size_t length) {
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n", method,
                                 path, target.host, target.port);
  if (!target.api_key.empty()) text += fmt::format("Authorization: Bearer {}\r\n", target.api_key);
  if (target.ask_step_time) text += "X-Nibble-Step-Time: 1\r\n";
  if (length > 0) {
    text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", length);
  }
  return text + "\r\n";
}

// What all exchanges of a run share.
struct Run {
  asio::io_context io{1};
  LoadTarget target;
  std::vector<Tcp::endpoint> addresses;
  Clock::time_point begin;
  std::function<void()> on_end;

  // Taking events apart takes longer than reading them, and what else comes of the same step would
  // look late, the more so where server and client share a processor: so it waits for a pause.
  void later(std::function<void()> task) {
    tasks.push_back(std::move(task));
    if (tasks.size() > 1) return;
    pause.expires_after(std::chrono::milliseconds(2));
    pause.async_wait([this](SystemError) {
      for (const auto& one : std::exchange(tasks, {})) one();
    });
  }

  asio::steady_timer pause{io};
  std::vector<std::function<void()>> tasks;
};

// One request and its answer.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(Run& run, const LoadRequest& request, LoadResult* result)
      : run_(run), socket_(run.io), result_(result) {
    text_ = header_text(run.target, "POST", run.target.path, request.body.size()) + request.body;
    parser_.body_limit(boost::none);
    parser_.eager(true);
  }

  void start() {
    start_ = last_ = Clock::now();
    result_->start = seconds(start_ - run_.begin);
    asio::async_connect(socket_, run_.addresses,
                        [self = shared_from_this()](SystemError error, const Tcp::endpoint&) {
                          if (error) return self->end("cannot connect: " + error.message());
                          SystemError ignored;
                          self->socket_.set_option(Tcp::no_delay(true), ignored);
                          self->send();
                        });
  }

 private:
  void send() {
    asio::async_write(socket_, asio::buffer(text_),
                      [self = shared_from_this()](SystemError error, size_t) {
                        if (error) return self->end("cannot send: " + error.message());
                        self->read();
                      });
  }

  // Reading notes what came and when, no more: see Run::later().
  void read() {
    socket_.async_read_some(
        asio::buffer(room_), [self = shared_from_this()](SystemError error, size_t bytes) {
          if (self->ended_) return;
          if (!error) {
            self->pieces_.push_back({Clock::now(), std::string(self->room_.data(), bytes)});
            const bool is_last = self->pieces_.back().second.ends_with("0\r\n\r\n");
            const bool at_once = is_last && !self->run_.target.ask_step_time;
            if (!at_once) self->run_.later([self] { self->take_pieces(); });
            self->read();
            if (at_once) asio::post(self->run_.io, [self] { self->take_pieces(); });
            return;
          }
          asio::post(self->run_.io, [self, error] {
            self->take_pieces();
            self->at_end_of_stream(error);
          });
        });
  }

  void take_pieces() {
    for (; !pieces_.empty() && !ended_; pieces_.pop_front()) {
      read_ = pieces_.front().first;
      raw_ += pieces_.front().second;
      SystemError error;
      while (!raw_.empty() && !parser_.is_done() && !error) {
        raw_.erase(0, parser_.put(asio::buffer(raw_), error));
      }
      body_ += std::exchange(parser_.get().body(), "");
      take_events();
      if (error && error != http::error::need_more) return end("no HTTP: " + error.message());
      if (parser_.is_done()) return end("");
    }
  }

  void at_end_of_stream(SystemError error) {
    if (ended_) return;
    if (error == asio::error::eof && parser_.is_header_done()) {
      SystemError cut;
      parser_.put_eof(cut);
      if (!cut && parser_.is_done()) return end("");
    }
    end("cut off: " + error.message());
  }

  void take_events() {
    if (parser_.is_header_done() && parser_.get().result_int() != 200) return;
    std::erase(body_, '\r');  // some servers end lines with both
    size_t at = 0;
    for (size_t end = body_.find("\n\n"); end != std::string::npos; end = body_.find("\n\n", at)) {
      take_event(std::string_view(body_).substr(at, end - at));
      at = end + 2;
    }
    body_.erase(0, at);
  }

  // Lines: comments, a name, data.
  void take_event(std::string_view event) {
    constexpr std::string_view kStep = ": step ";
    while (!event.empty()) {
      const std::string_view line = event.substr(0, event.find('\n'));
      event.remove_prefix(std::min(line.size() + 1, event.size()));
      if (line.starts_with(kStep)) {
        const double step = std::strtod(std::string(line.substr(kStep.size())).c_str(), nullptr);
        result_->delays.push_back(seconds(read_.time_since_epoch()) - step);
      }
      if (line.starts_with("data: ")) take_data(line.substr(6));
    }
  }

  void take_data(std::string_view data) {
    if (data == "[DONE]") return;
    const auto json = nlohmann::json::parse(data, nullptr, false);
    if (!json.is_object()) {
      error_ = "an event is no JSON";
      return;
    }
    if (json.contains("error")) {
      error_ = json["error"].dump();
      return;
    }
    const auto usage = json.find("usage");
    if (usage != json.end() && usage->is_object()) {
      result_->prompt_tokens = usage->value("prompt_tokens", int64_t{0});
      result_->output_tokens = usage->value("completion_tokens", int64_t{0});
    }
    const auto choices = json.find("choices");
    if (choices == json.end() || choices->empty()) return;
    const auto& choice = choices->front();
    const auto has_text = [](const nlohmann::json& object, const char* name) {
      const auto found = object.find(name);
      if (found == object.end()) return false;
      return found->is_string() ? !found->get_ref<const std::string&>().empty() : !found->empty();
    };
    bool is_token = has_text(choice, "text");
    const auto delta = choice.find("delta");
    if (delta != choice.end()) {
      is_token = is_token || has_text(*delta, "content") || has_text(*delta, "reasoning_content") ||
                 has_text(*delta, "reasoning") || has_text(*delta, "tool_calls");
    }
    if (!is_token) return;
    if (!std::exchange(has_token_, true)) {
      result_->time_to_first_token = seconds(read_ - start_);
    } else {
      result_->gaps.push_back(seconds(read_ - last_));
    }
    last_ = read_;
  }

  void end(std::string problem) {
    ended_ = true;
    const int status = parser_.is_header_done() ? static_cast<int>(parser_.get().result_int()) : 0;
    if (problem.empty()) problem = error_;
    if (status != 0 && status != 200) {
      problem = fmt::format("status {}: {}", status, body_.substr(0, 300));
    }
    result_->latency = seconds((has_token_ ? last_ : Clock::now()) - start_);
    result_->success = problem.empty();
    result_->error = std::move(problem);
    SystemError ignored;
    socket_.close(ignored);
    run_.on_end();
  }

  Run& run_;
  Tcp::socket socket_;
  LoadResult* result_;
  std::string text_;
  std::array<char, 4096> room_;
  std::string raw_;  // come, and not taken by the parser
  http::response_parser<http::string_body> parser_;
  Clock::time_point start_;
  Clock::time_point last_;
  std::deque<std::pair<Clock::time_point, std::string>> pieces_;  // come, and not looked at
  std::string body_;
  Clock::time_point read_;  // when the bytes at hand came
  bool has_token_ = false;
  bool ended_ = false;
  std::string error_;
};

Result<std::vector<Tcp::endpoint>> resolve(asio::io_context& io, const LoadTarget& target) {
  SystemError error;
  Tcp::resolver resolver(io);
  const auto found = resolver.resolve(target.host, target.port, error);
  if (error) {
    return unavailable(
        fmt::format("cannot find {}:{}: {}", target.host, target.port, error.message()));
  }
  std::vector<Tcp::endpoint> addresses;
  for (const auto& entry : found) addresses.push_back(entry.endpoint());
  return addresses;
}

}  // namespace

Result<std::vector<LoadResult>> run_load(const LoadTarget& target,
                                         const std::vector<LoadRequest>& requests,
                                         int64_t max_concurrency,
                                         const std::function<bool(int64_t finished)>& progress) {
  Run run;
  run.target = target;
  run.addresses = NIBBLE_TRY(resolve(run.io, target));
  std::vector<LoadResult> results(requests.size());
  (void)ask_for_short_turns();  // a late clock would be the server's fault in the figures
  run.begin = Clock::now();
  asio::steady_timer timer(run.io);
  size_t next = 0;
  int64_t running = 0;
  int64_t finished = 0;
  bool goes_on = true;
  std::function<void()> launch = [&] {
    while (goes_on && next < requests.size() &&
           (max_concurrency == 0 || running < max_concurrency)) {
      const auto due = run.begin + std::chrono::duration_cast<Clock::duration>(
                                       std::chrono::duration<double>(requests[next].start_second));
      if (Clock::now() < due) {
        timer.expires_at(due);
        timer.async_wait([&](SystemError error) {
          if (!error) launch();
        });
        return;
      }
      ++running;
      std::make_shared<Exchange>(run, requests[next], &results[next])->start();
      ++next;
    }
  };
  run.on_end = [&] {
    --running;
    ++finished;
    goes_on = goes_on && progress(finished);
    if (!goes_on) return run.io.stop();
    launch();
  };
  launch();
  run.io.run();
  return results;
}

Result<LoadTarget> parse_load_target(const std::string& base_url, const std::string& endpoint) {
  if (base_url.starts_with("https://")) {
    return unsupported("https is not supported here; measure behind the proxy, with http://");
  }
  if (!base_url.starts_with("http://")) {
    return invalid_argument(fmt::format("'{}' is no http://HOST:PORT", base_url));
  }
  std::string rest = base_url.substr(7);
  LoadTarget target;
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string prefix = rest.substr(slash);
  while (prefix.ends_with('/')) prefix.pop_back();
  rest.resize(slash);
  const size_t colon = rest.rfind(':');
  target.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  target.host = rest.substr(0, colon);
  target.path = prefix + endpoint;
  if (target.host.empty()) return invalid_argument(fmt::format("'{}' names no host", base_url));
  return target;
}

Result<std::string> http_get(const LoadTarget& target, const std::string& path) {
  asio::io_context io;
  const auto addresses = NIBBLE_TRY(resolve(io, target));
  Tcp::socket socket(io);
  SystemError error;
  asio::connect(socket, addresses, error);
  const std::string text = header_text(target, "GET", path, 0);
  if (!error) asio::write(socket, asio::buffer(text), error);
  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(boost::none);
  if (!error) http::read(socket, buffer, parser, error);
  if (error || parser.get().result_int() != 200) {
    return unavailable(fmt::format("GET {} of {}:{}: {}", path, target.host, target.port,
                                   error ? error.message() : "not 200"));
  }
  return parser.get().body();
}

}  // namespace nibble
