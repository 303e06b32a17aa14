// A server on the demo checkpoint in this process, and a client that does what it is told to.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/server/service.h"
#include "tests/model/demo.h"

namespace nibble::testing {

using Json = nlohmann::ordered_json;

// A connection with raw bytes.
class Client {
 public:
  explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval patience{30, 0};
    (void)::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    connected_ =
        ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { close(); }

  bool connected() const { return connected_; }
  void send(std::string_view text) const {
    (void)::send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
  }
  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void half_close() const { (void)::shutdown(socket_, SHUT_WR); }

  // Some more bytes; "" at the end or when nothing came for long.
  std::string receive_some() const {
    char buffer[16384];
    const auto count = ::recv(socket_, buffer, sizeof(buffer), 0);
    return count > 0 ? std::string(buffer, static_cast<size_t>(count)) : "";
  }
  std::string receive_until(std::string_view mark) {
    while (pending_.find(mark) == std::string::npos) {
      const std::string more = receive_some();
      if (more.empty()) break;
      pending_ += more;
    }
    const size_t end = std::min(pending_.find(mark), pending_.size() - mark.size());
    if (pending_.size() < mark.size()) return std::exchange(pending_, "");
    std::string out = pending_.substr(0, end + mark.size());
    pending_.erase(0, end + mark.size());
    return out;
  }
  std::string receive_all() {
    std::string all = std::exchange(pending_, "");
    for (std::string more = receive_some(); !more.empty(); more = receive_some()) all += more;
    return all;
  }
  std::string receive_bytes(size_t count) {
    while (pending_.size() < count) {
      const std::string more = receive_some();
      if (more.empty()) break;
      pending_ += more;
    }
    std::string out = pending_.substr(0, count);
    pending_.erase(0, std::min(count, pending_.size()));
    return out;
  }

 private:
  int socket_;
  bool connected_ = false;
  std::string pending_;
};

struct Answer {
  int status = 0;
  std::string head;
  std::string body;  // chunks put together

  Json json() const { return Json::parse(body, nullptr, false); }
  std::string header(const std::string& name) const {
    const size_t at = head.find("\r\n" + name + ": ");
    if (at == std::string::npos) return "";
    const size_t begin = at + name.size() + 4;
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }
  // The JSON of each `data:` line but [DONE].
  std::vector<Json> events() const {
    std::vector<Json> out;
    size_t at = 0;
    while ((at = body.find("data: ", at)) != std::string::npos) {
      const size_t end = body.find('\n', at);
      const std::string data = body.substr(at + 6, end - at - 6);
      if (data != "[DONE]") out.push_back(Json::parse(data));
      at = end;
    }
    return out;
  }
};

// Reads one answer from the connection.
inline Answer read_answer(Client& client, bool head_only = false) {
  Answer answer;
  answer.head = client.receive_until("\r\n\r\n");
  if (answer.head.size() < 12) return answer;
  answer.status = std::atoi(answer.head.c_str() + 9);
  if (head_only) return answer;
  const std::string length = answer.header("Content-Length");
  if (!length.empty()) {
    answer.body = client.receive_bytes(std::stoul(length));
  } else if (answer.header("Transfer-Encoding") == "chunked") {
    for (;;) {
      const std::string size = client.receive_until("\r\n");
      const size_t count = size.empty() ? 0 : std::stoul(size, nullptr, 16);
      if (count == 0) break;
      answer.body += client.receive_bytes(count);
      client.receive_until("\r\n");
    }
    client.receive_until("\r\n");
  }
  return answer;
}

inline std::string request_text(const std::string& method, const std::string& path,
                                const std::string& body = "", const std::string& headers = "") {
  std::string text = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers;
  if (!body.empty()) text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  return text + "\r\n" + body;
}

inline LoadedModel& served_model() {
  static const std::unique_ptr<LoadedModel> model = load_model(demo_checkpoint(), "cpu");
  return *model;
}

class TestServer {
 public:
  // `change` may set what requests are read against; `weights`, which must outlive the server, is
  // the demo model loaded in another way.
  explicit TestServer(ServiceOptions options = {}, HttpServerOptions http = {},
                      EngineOptions engine = small_engine(),
                      const std::function<void(ServedModel&)>& change = nullptr,
                      LoadedModel* weights = nullptr)
      : engine_(std::make_unique<EngineThread>(
            *Engine::create(weights == nullptr ? served_model() : *weights, engine))) {
    options.max_batch_size = engine.max_batch_size;
    service_ = std::make_unique<Service>(options);
    http.port = 0;
    http_ = *HttpServer::listen(http, *service_);
    service_->attach(*http_);
    ServedModel model;
    model.names = {"demo", "other-name"};
    model.tokenizer = &served_model().tokenizer;
    model.chat_template = *ChatTemplate::load(demo_checkpoint());
    model.tags = find_reply_tags(served_model().tokenizer);
    model.eos_token_ids = served_model().config.eos_token_ids;
    model.vocab_size = served_model().config.vocab_size;
    model.max_seq_len = engine_->max_seq_len();
    model.temperature = 0.6;
    model.top_p = 0.95;
    if (change) change(model);
    ServedEngine served;
    served.engine = engine_.get();
    served.model = std::move(model);
    served.server_info = "{}";
    service_->become_ready(std::move(served));
    thread_ = std::thread(
        [this] { http_->run(std::chrono::milliseconds(10), [this] { service_->tick(); }); });
  }
  ~TestServer() {
    http_->stop();
    thread_.join();
    engine_->shutdown();
    service_.reset();
    http_.reset();
  }

  static EngineOptions small_engine() {
    EngineOptions options;
    options.num_blocks = 256;
    return options;
  }

  uint16_t port() const { return http_->port(); }
  EngineThread& engine() { return *engine_; }
  Service& service() { return *service_; }
  void post(std::function<void()> task) { http_->post(std::move(task)); }
  Status reload_certificate() { return http_->reload_certificate(); }  // on the server's thread

  Answer ask(const std::string& method, const std::string& path, const std::string& body = "",
             const std::string& headers = "") const {
    Client client(port());
    client.send(request_text(method, path, body, headers));
    return read_answer(client, method == "HEAD");
  }
  Answer post(const std::string& path, const Json& body) const {
    return ask("POST", path, body.dump());
  }

  // Waits until the engine has nothing to do; false after ten seconds.
  bool idle() const {
    for (int i = 0; i < 1000; ++i) {
      const EngineStats stats = engine_->stats();
      if (stats.num_running == 0 && stats.num_waiting == 0 && stats.num_used_blocks == 0) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

 private:
  std::unique_ptr<EngineThread> engine_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> http_;
  std::thread thread_;
};

inline Json chat_body(const std::string& text, Json more = Json::object()) {
  Json body = {{"messages", {{{"role", "user"}, {"content", text}}}}, {"temperature", 0}};
  body.update(more);
  return body;
}

}  // namespace nibble::testing
