// The one file that knows Beast and Asio on the server's side. Requests are parsed by Beast;
// replies are few and simple and are put together here.
#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <list>
#include <optional>
#include <unordered_set>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/server/http.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kMaxHeaderBytes = 64 << 10;

bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

std::string_view reason_phrase(int status) {
  const auto text = http::obsolete_reason(static_cast<http::status>(status));
  return {text.data(), text.size()};
}

// A header's value may not smuggle in another header.
std::string header_safe(std::string_view value) {
  std::string out(value);
  std::erase_if(out, [](char c) { return c == '\r' || c == '\n' || c == '\0'; });
  return out;
}

class Connection;

struct Shared {
  HttpServerOptions options;
  HttpHandler* handler = nullptr;
  int64_t num_connections = 0;
  // Connections without a request, the longest waiting first: those that never sent one (TLS and
  // half-sent headers count too), and those between two requests.
  std::list<Connection*> fresh;
  std::list<Connection*> idle;
};

class Reply final : public HttpReply {
 public:
  Reply(std::shared_ptr<Connection> connection, int64_t serial)
      : connection_(std::move(connection)), serial_(serial) {}
  ~Reply() override;

  void send(HttpResponse response) override;
  void begin(HttpResponse head) override;
  void write(std::string piece) override;
  void end() override;
  void on_gone(std::function<void()> callback) override;
  size_t unsent_bytes() const override;

 private:
  std::shared_ptr<Connection> connection_;
  int64_t serial_;  // of the request on this connection
};

// One client. All on the io_context's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = asio::generic::stream_protocol::socket;

  Connection(Socket socket, std::string client, asio::io_context& io,
             const std::shared_ptr<asio::ssl::context>& tls, std::shared_ptr<Shared> shared)
      : io_(io),
        client_(std::move(client)),
        shared_(std::move(shared)),
        tls_context_(tls),
        read_timer_(io),
        write_timer_(io) {
    if (tls) {
      tls_.emplace(std::move(socket), *tls);
    } else {
      plain_.emplace(std::move(socket));
    }
    ++shared_->num_connections;
    join(shared_->fresh);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    leave();
    no_longer_counted();
  }

  void start() {
    if (!tls_) return wait_for_request(shared_->options.header_timeout);
    arm_read_timer(shared_->options.header_timeout);
    tls_->async_handshake(asio::ssl::stream_base::server,
                          [self = shared_from_this()](SystemError error) {
                            if (error) return self->close();
                            self->wait_for_request(self->shared_->options.header_timeout);
                          });
  }

  void close() {
    if (closed_) return;
    closed_ = true;
    leave();
    no_longer_counted();
    read_timer_.cancel();
    write_timer_.cancel();
    SystemError ignored;
    lowest().close(ignored);
    queue_.clear();
    queued_bytes_ = 0;
    if (replying_ && gone_) {
      const auto gone = std::exchange(gone_, nullptr);
      gone();
    }
    gone_ = nullptr;
  }

  asio::io_context& io() { return io_; }
  Clock::time_point since() const { return since_; }

  // The functions of Reply, on the io_context's thread.
  void send(HttpResponse response) {
    if (closed_ || !replying_ || streaming_) return;
    write_head(response, response.body.size());
    if (!head_only_) queue_piece(std::move(response.body));
    finish_reply();
  }
  void begin(const HttpResponse& head) {
    if (closed_ || !replying_ || streaming_) return;
    streaming_ = true;
    write_head(head, std::nullopt);
  }
  void write(std::string piece) {
    if (closed_ || !streaming_ || piece.empty() || head_only_) return;
    queue_piece(chunked_ ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : std::move(piece));
  }
  void end() {
    if (closed_ || !streaming_) return;
    if (chunked_ && !head_only_) queue_piece("0\r\n\r\n");
    finish_reply();
  }
  void set_gone(std::function<void()> callback) {
    if (closed_) {
      callback();
    } else {
      gone_ = std::move(callback);
    }
  }
  size_t unsent_bytes() const { return queued_bytes_; }
  // A handler that let go of its reply without an answer.
  void abandoned(int64_t serial) {
    if (serial == serial_ && !closed_ && replying_ && !ending_) close();
  }

 private:
  Socket& lowest() { return tls_ ? tls_->next_layer() : *plain_; }

  void join(std::list<Connection*>& list) {
    leave();
    since_ = Clock::now();
    list_ = &list;
    place_ = list.insert(list.end(), this);
  }
  void no_longer_counted() {
    if (std::exchange(counted_, false)) --shared_->num_connections;
  }
  void leave() {
    if (list_ != nullptr) list_->erase(place_);
    list_ = nullptr;
  }

  void arm_read_timer(std::chrono::milliseconds timeout, int status = 0) {
    read_timer_.expires_after(timeout);
    read_timer_.async_wait([weak = weak_from_this(), status](SystemError error) {
      const auto self = weak.lock();
      if (error || !self || self->closed_) return;
      if (self->read_timer_.expiry() > Clock::now()) return;  // armed anew meanwhile
      if (status == 0) return self->close();
      self->refuse(status, "the request did not arrive in time");
    });
  }

  // Reads until something is there. Stays outstanding while a reply is made: so the end of the
  // client is seen at once.
  void wait_for_request(std::chrono::milliseconds timeout) {
    if (closed_) return;
    if (!replying_ && buffer_.size() > 0) return read_header();
    if (!replying_) arm_read_timer(timeout);
    // What came too early is the next request: it waits for its turn.
    if (reading_ || buffer_.size() > 0) return;
    reading_ = true;
    const auto on_read = [self = shared_from_this()](SystemError error, size_t bytes) {
      self->reading_ = false;
      if (error) return self->close();  // a half-closed socket counts as gone
      self->buffer_.commit(bytes);
      if (self->replying_) return self->wait_for_request({});
      self->read_header();
    };
    const auto room = buffer_.prepare(4096);
    if (tls_) {
      tls_->async_read_some(room, on_read);
    } else {
      plain_->async_read_some(room, on_read);
    }
  }

  void read_header() {
    if (closed_) return;
    arm_read_timer(shared_->options.header_timeout, 408);
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(shared_->handler->max_body_bytes());
    const auto on_header = [self = shared_from_this()](SystemError error, size_t) {
      self->on_header(error);
    };
    if (tls_) {
      http::async_read_header(*tls_, buffer_, *parser_, on_header);
    } else {
      http::async_read_header(*plain_, buffer_, *parser_, on_header);
    }
  }

  void on_header(SystemError error) {
    if (closed_ || ending_) return;
    leave();
    if (error) return refuse_for(error);
    const auto length = parser_->content_length();
    if (length && *length > shared_->handler->max_body_bytes()) {
      return refuse(
          413, fmt::format("the body has {} bytes, and at most {} are taken",
                           static_cast<uint64_t>(*length), shared_->handler->max_body_bytes()));
    }
    const auto expect = parser_->get()[http::field::expect];
    if (!parser_->is_done() && same_name({expect.data(), expect.size()}, "100-continue")) {
      queue_piece("HTTP/1.1 100 Continue\r\n\r\n");
    }
    arm_read_timer(shared_->options.body_timeout, 408);
    const auto on_body = [self = shared_from_this()](SystemError body_error, size_t) {
      self->on_request(body_error);
    };
    if (tls_) {
      http::async_read(*tls_, buffer_, *parser_, on_body);
    } else {
      http::async_read(*plain_, buffer_, *parser_, on_body);
    }
  }

  void refuse_for(SystemError error) {
    if (error == http::error::header_limit) {
      return refuse(431, fmt::format("the headers are larger than {} bytes", kMaxHeaderBytes));
    }
    if (error == http::error::body_limit) {
      return refuse(
          413, fmt::format("the body is larger than {} bytes", shared_->handler->max_body_bytes()));
    }
    const bool malformed =
        error.category() == http::make_error_code(http::error::bad_version).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message;
    if (malformed) return refuse(400, fmt::format("no HTTP request: {}", error.message()));
    close();
  }

  void refuse(int status, std::string_view message) {
    replying_ = true;
    keep_alive_ = false;
    head_only_ = false;
    HttpResponse response = shared_->handler->refusal(status, message);
    response.close = true;
    send(std::move(response));
  }

  void on_request(SystemError error) {
    if (closed_ || ending_) return;
    if (error) return refuse_for(error);
    read_timer_.cancel();
    auto message = parser_->release();
    parser_.reset();
    HttpRequest request;
    const auto method = message.method_string();
    request.method.assign(method.data(), method.size());
    const std::string_view target(message.target().data(), message.target().size());
    const size_t question = std::min(target.find('?'), target.size());
    request.path = target.substr(0, question);
    if (question < target.size()) request.query = target.substr(question + 1);
    for (const auto& field : message) {
      request.headers.emplace_back(
          std::string(field.name_string().data(), field.name_string().size()),
          std::string(field.value().data(), field.value().size()));
    }
    request.body = std::move(message.body());
    request.client = client_;
    keep_alive_ = message.keep_alive();
    chunked_ = message.version() >= 11;
    head_only_ = request.method == "HEAD";
    if (head_only_) request.method = "GET";
    replying_ = true;
    streaming_ = false;
    wait_for_request({});
    shared_->handler->handle(std::move(request),
                             std::make_shared<Reply>(shared_from_this(), ++serial_));
  }

  // Without `length`: a stream.
  void write_head(const HttpResponse& response, std::optional<size_t> length) {
    if (response.close || (!length && !chunked_)) keep_alive_ = false;
    std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: nibble\r\n", response.status,
                                   reason_phrase(response.status));
    if (!response.content_type.empty()) {
      head += fmt::format("Content-Type: {}\r\n", response.content_type);
    }
    if (length) {
      head += fmt::format("Content-Length: {}\r\n", *length);
    } else if (chunked_) {
      head += "Transfer-Encoding: chunked\r\n";
    }
    for (const auto& [name, value] : response.headers) {
      head += fmt::format("{}: {}\r\n", name, header_safe(value));
    }
    head += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
    queue_piece(std::move(head));
  }

  void queue_piece(std::string piece) {
    if (piece.empty()) return;
    queued_bytes_ += piece.size();
    queue_.push_back(std::move(piece));
    if (!writing_) write_some();
  }

  void finish_reply() {
    ending_ = true;
    gone_ = nullptr;
    if (!writing_) reply_is_out();
  }

  void write_some() {
    writing_ = true;
    sending_.clear();
    while (!queue_.empty() && sending_.size() < (256 << 10)) {
      sending_ += queue_.front();
      queue_.pop_front();
    }
    write_timer_.expires_after(shared_->options.write_timeout);
    write_timer_.async_wait([weak = weak_from_this()](SystemError error) {
      const auto self = weak.lock();
      if (error || !self || self->write_timer_.expiry() > Clock::now()) return;
      self->close();
    });
    const auto on_written = [self = shared_from_this()](SystemError error, size_t) {
      self->writing_ = false;
      if (self->closed_) return;
      if (error) return self->close();
      self->write_timer_.cancel();
      self->queued_bytes_ -= self->sending_.size();
      if (!self->queue_.empty()) return self->write_some();
      if (self->ending_) self->reply_is_out();
    };
    if (tls_) {
      asio::async_write(*tls_, asio::buffer(sending_), on_written);
    } else {
      asio::async_write(*plain_, asio::buffer(sending_), on_written);
    }
  }

  void reply_is_out() {
    ending_ = false;
    replying_ = false;
    streaming_ = false;
    if (!keep_alive_) return linger();
    join(shared_->idle);
    if (reading_) {
      arm_read_timer(shared_->options.idle_timeout);
    } else {
      wait_for_request(shared_->options.idle_timeout);
    }
  }

  // Says that nothing more will come and reads on for a moment: closing a socket with unread data
  // would reset it, and the client would lose the answer.
  void linger() {
    if (closed_) return;
    SystemError ignored;
    lowest().shutdown(Socket::shutdown_send, ignored);
    arm_read_timer(std::chrono::seconds(2));
    if (!reading_) drain();
  }
  void drain() {
    if (closed_) return;
    reading_ = true;
    buffer_.clear();
    lowest().async_read_some(buffer_.prepare(16384),
                             [self = shared_from_this()](SystemError error, size_t) {
                               self->reading_ = false;
                               if (error) return self->close();
                               self->drain();
                             });
  }

  asio::io_context& io_;
  std::string client_;
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<asio::ssl::context> tls_context_;
  std::optional<Socket> plain_;
  std::optional<asio::ssl::stream<Socket>> tls_;
  asio::steady_timer read_timer_;
  asio::steady_timer write_timer_;

  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  bool reading_ = false;
  std::list<Connection*>* list_ = nullptr;
  std::list<Connection*>::iterator place_;
  Clock::time_point since_;

  int64_t serial_ = 0;
  bool counted_ = true;
  bool closed_ = false;
  bool replying_ = false;   // between a request and the last byte of its answer
  bool streaming_ = false;  // begin() was called
  bool ending_ = false;     // all of the answer is queued
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;
  std::function<void()> gone_;

  std::deque<std::string> queue_;
  std::string sending_;
  bool writing_ = false;
  size_t queued_bytes_ = 0;
};

Reply::~Reply() {
  asio::io_context& io = connection_->io();
  asio::dispatch(io, [c = std::move(connection_), serial = serial_] { c->abandoned(serial); });
}
void Reply::send(HttpResponse response) {
  asio::dispatch(connection_->io(),
                 [c = connection_, r = std::move(response)]() mutable { c->send(std::move(r)); });
}
void Reply::begin(HttpResponse head) {
  asio::dispatch(connection_->io(), [c = connection_, h = std::move(head)] { c->begin(h); });
}
void Reply::write(std::string piece) {
  asio::dispatch(connection_->io(),
                 [c = connection_, p = std::move(piece)]() mutable { c->write(std::move(p)); });
}
void Reply::end() {
  asio::dispatch(connection_->io(), [c = connection_] { c->end(); });
}
void Reply::on_gone(std::function<void()> callback) { connection_->set_gone(std::move(callback)); }
size_t Reply::unsent_bytes() const { return connection_->unsent_bytes(); }

class AsioServer final : public HttpServer {
 public:
  AsioServer(const HttpServerOptions& options, HttpHandler& handler)
      : io_(1), acceptor_(io_), timer_(io_), retry_(io_), shared_(std::make_shared<Shared>()) {
    shared_->options = options;
    shared_->handler = &handler;
  }

  Status open() {
    const HttpServerOptions& options = shared_->options;
    if (!options.certificate_file.empty()) NIBBLE_TRY(reload_certificate());
    const std::string where = fmt::format("{}:{}", options.host, options.port);
    SystemError error;
    Tcp::resolver resolver(io_);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port), Tcp::resolver::passive, error);
    if (error) return unavailable(fmt::format("cannot listen on {}: {}", where, error.message()));
    // The first address that works; IPv4 before IPv6, so that "localhost" is 127.0.0.1.
    std::vector<Tcp::endpoint> addresses;
    for (const auto& entry : found) addresses.push_back(entry.endpoint());
    std::stable_sort(addresses.begin(), addresses.end(), [](const auto& a, const auto& b) {
      return a.address().is_v4() && !b.address().is_v4();
    });
    for (const Tcp::endpoint& address : addresses) {
      acceptor_.close(error);
      acceptor_.open(address.protocol(), error);
      if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
      if (!error) acceptor_.bind(address, error);
      if (!error) acceptor_.listen(4096, error);
      if (!error) {
        port_ = acceptor_.local_endpoint().port();
        return {};
      }
    }
    return unavailable(fmt::format("cannot listen on {}: {}", where, error.message()));
  }

  uint16_t port() const override { return port_; }
  int64_t num_connections() const override { return shared_->num_connections; }
  void post(std::function<void()> task) override { asio::post(io_, std::move(task)); }

  void run(std::chrono::milliseconds interval, std::function<void()> tick) override {
    interval_ = interval;
    tick_ = std::move(tick);
    accept();
    tick_later();
    for (;;) {
      try {
        io_.run();
        return;
      } catch (const std::exception& error) {
        // One request's trouble is not the others': its connection goes with its handlers.
        log_error(fmt::format("a request failed inside the server: {}", error.what()));
      }
    }
  }

  void stop() override { io_.stop(); }

  Status reload_certificate() override {
    auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
    const HttpServerOptions& options = shared_->options;
    SystemError error;
    context->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                             asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                             asio::ssl::context::no_tlsv1_1,
                         error);
    context->use_certificate_chain_file(options.certificate_file, error);
    if (error) {
      return invalid_argument(fmt::format("cannot use the certificate {}: {}",
                                          options.certificate_file, error.message()));
    }
    context->use_private_key_file(options.key_file, asio::ssl::context::pem, error);
    if (error) {
      return invalid_argument(
          fmt::format("cannot use the private key {}: {}", options.key_file, error.message()));
    }
    tls_ = std::move(context);
    return {};
  }

 private:
  void accept() {
    acceptor_.async_accept([this](SystemError error, Tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {  // out of file descriptors, most likely: others have to end first
        log_warning(fmt::format("cannot accept a connection: {}", error.message()));
        retry_.expires_after(std::chrono::milliseconds(50));
        retry_.async_wait([this](SystemError e) {
          if (!e) accept();
        });
        return;
      }
      take(std::move(socket));
      accept();
    });
  }

  void take(Tcp::socket socket) {
    SystemError error;
    const auto peer = socket.remote_endpoint(error);
    if (error) return;
    make_room();
    if (shared_->num_connections >= shared_->options.max_connections) return;  // closes it
    socket.set_option(Tcp::no_delay(true), error);
    std::make_shared<Connection>(Connection::Socket(std::move(socket)), peer.address().to_string(),
                                 io_, tls_, shared_)
        ->start();
  }

  // Whoever holds connections without using them gives way to who comes: so a flood of idle ones
  // keeps nobody out.
  void make_room() {
    constexpr auto kLongEnough = std::chrono::seconds(1);
    auto& fresh = shared_->fresh;
    if (static_cast<int64_t>(fresh.size()) >= shared_->options.max_handshakes &&
        Clock::now() - fresh.front()->since() > kLongEnough) {
      fresh.front()->shared_from_this()->close();
    }
    if (shared_->num_connections < shared_->options.max_connections) return;
    auto& list = fresh.empty() ? shared_->idle : fresh;
    if (!list.empty()) list.front()->shared_from_this()->close();
  }

  void tick_later() {
    timer_.expires_after(interval_);
    timer_.async_wait([this](SystemError error) {
      if (error) return;
      tick_later();
      tick_();
    });
  }

  asio::io_context io_;
  Tcp::acceptor acceptor_;
  asio::steady_timer timer_;
  asio::steady_timer retry_;
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<asio::ssl::context> tls_;
  uint16_t port_ = 0;
  std::chrono::milliseconds interval_{};
  std::function<void()> tick_;
};

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (same_name(key, name)) return value;
  }
  return {};
}

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const HttpServerOptions& options,
                                                       HttpHandler& handler) {
  auto server = std::make_unique<AsioServer>(options, handler);
  NIBBLE_TRY(server->open());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace nibble
