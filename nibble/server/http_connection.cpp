#include "nibble/server/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <cctype>
#include <utility>

namespace nibble {
namespace {

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

class Reply final : public HttpReply {
 public:
  Reply(std::shared_ptr<Connection> connection, int64_t serial)
      : connection_(std::move(connection)), serial_(serial) {}
  ~Reply() override;

  void send(HttpResponse response) override;
  void begin(HttpResponse head) override;
  void write(std::string piece) override;
  void end(std::string last_piece) override;
  void on_gone(std::function<void()> callback) override;
  size_t unsent_bytes() const override;

 private:
  std::shared_ptr<Connection> connection_;
  int64_t serial_;  // of the request on this connection
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
  if (connection_->io().get_executor().running_in_this_thread()) {
    return connection_->write(std::move(piece));
  }
  asio::dispatch(connection_->io(),
                 [c = connection_, p = std::move(piece)]() mutable { c->write(std::move(p)); });
}
void Reply::end(std::string last_piece) {
  asio::dispatch(connection_->io(),
                 [c = connection_, p = std::move(last_piece)]() mutable { c->end(std::move(p)); });
}
void Reply::on_gone(std::function<void()> callback) { connection_->set_gone(std::move(callback)); }
size_t Reply::unsent_bytes() const { return connection_->unsent_bytes(); }

}  // namespace

Connection::Connection(Socket socket, std::string client, asio::io_context& io,
                       const std::shared_ptr<asio::ssl::context>& tls,
                       std::shared_ptr<ConnectionShared> shared)
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
    SystemError ignored;
    plain_->non_blocking(true, ignored);  // write_at_once() never waits
  }
  ++shared_->num_connections;
  join(shared_->fresh);
}

Connection::~Connection() {
  leave();
  no_longer_counted();
}

void Connection::start() {
  if (!tls_) return wait_for_request(shared_->options.header_timeout);
  arm_read_timer(shared_->options.header_timeout);
  tls_->async_handshake(asio::ssl::stream_base::server,
                        [self = shared_from_this()](SystemError error) {
                          if (error) return self->close();
                          self->wait_for_request(self->shared_->options.header_timeout);
                        });
}

void Connection::close() {
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

void Connection::send(HttpResponse response) {
  if (closed_ || !replying_ || streaming_) return;
  write_head(response, response.body.size());
  if (!head_only_) hold_piece(std::move(response.body));
  finish_reply();
}

void Connection::begin(const HttpResponse& head) {
  if (closed_ || !replying_ || streaming_) return;
  streaming_ = true;
  write_head(head, std::nullopt);
}

void Connection::write(std::string piece) {
  if (closed_ || !streaming_ || ending_) return;
  hold_body_piece(std::move(piece));
  write_queue();
}

void Connection::end(std::string last_piece) {
  if (closed_ || !streaming_ || ending_) return;
  hold_body_piece(std::move(last_piece));
  if (chunked_ && !head_only_) hold_piece("0\r\n\r\n");
  finish_reply();
}

void Connection::set_gone(std::function<void()> callback) {
  if (closed_) {
    callback();
  } else {
    gone_ = std::move(callback);
  }
}

void Connection::abandoned(int64_t serial) {
  if (serial == serial_ && !closed_ && replying_ && !ending_) close();
}

void Connection::join(std::list<Connection*>& list) {
  leave();
  since_ = Clock::now();
  list_ = &list;
  place_ = list.insert(list.end(), this);
}

void Connection::no_longer_counted() {
  if (std::exchange(counted_, false)) --shared_->num_connections;
}

void Connection::leave() {
  if (list_ != nullptr) list_->erase(place_);
  list_ = nullptr;
}

void Connection::arm_read_timer(std::chrono::milliseconds timeout, int status) {
  read_timer_.expires_after(timeout);
  read_timer_.async_wait([weak = weak_from_this(), status](SystemError error) {
    const auto self = weak.lock();
    if (error || !self || self->closed_) return;
    if (self->read_timer_.expiry() > Clock::now()) return;  // armed anew or stopped meanwhile
    if (status == 0) return self->close();
    self->refuse(status, "the request did not arrive in time");
  });
}

void Connection::wait_for_request(std::chrono::milliseconds timeout) {
  if (closed_) return;
  if (!replying_ && buffer_.size() > 0) return read_header();
  if (!replying_) arm_read_timer(timeout);
  // What came too early is the next request: it waits for its turn.
  if (reading_ || buffer_.size() > 0) return;
  reading_ = true;
  const auto on_read = [self = shared_from_this()](SystemError error, size_t bytes) {
    self->reading_ = false;
    if (error) return self->close();  // a half-closed socket counts as gone
    if (self->lingering_) return self->drain();
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

void Connection::read_header() {
  if (closed_) return;
  arm_read_timer(shared_->options.header_timeout, 408);
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  parser_->body_limit(shared_->handler->max_body_bytes());
  reading_ = true;
  const auto on_header = [self = shared_from_this()](SystemError error, size_t) {
    self->reading_ = false;
    self->on_header(error);
  };
  if (tls_) {
    http::async_read_header(*tls_, buffer_, *parser_, on_header);
  } else {
    http::async_read_header(*plain_, buffer_, *parser_, on_header);
  }
}

// A request that came too slowly has its answer before it is read.
bool Connection::is_refused() {
  if (closed_ || replying_) return true;
  if (lingering_) drain();
  return lingering_;
}

void Connection::on_header(SystemError error) {
  if (is_refused()) return;
  leave();
  if (error) return refuse_for(error);
  const auto length = parser_->content_length();
  if (length && *length > shared_->handler->max_body_bytes()) {
    return refuse(413,
                  fmt::format("the body has {} bytes, and at most {} are taken",
                              static_cast<uint64_t>(*length), shared_->handler->max_body_bytes()));
  }
  const auto expect = parser_->get()[http::field::expect];
  if (!parser_->is_done() && same_name({expect.data(), expect.size()}, "100-continue")) {
    hold_piece("HTTP/1.1 100 Continue\r\n\r\n");
    write_queue();
  }
  arm_read_timer(shared_->options.body_timeout, 408);
  reading_ = true;
  const auto on_body = [self = shared_from_this()](SystemError body_error, size_t) {
    self->reading_ = false;
    self->on_request(body_error);
  };
  if (tls_) {
    http::async_read(*tls_, buffer_, *parser_, on_body);
  } else {
    http::async_read(*plain_, buffer_, *parser_, on_body);
  }
}

void Connection::refuse_for(SystemError error) {
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

void Connection::refuse(int status, std::string_view message) {
  replying_ = true;
  keep_alive_ = false;
  head_only_ = false;
  HttpResponse response = shared_->handler->refusal(status, message);
  response.close = true;
  send(std::move(response));
}

void Connection::on_request(SystemError error) {
  if (is_refused()) return;
  if (error) return refuse_for(error);
  read_timer_.expires_at(Clock::time_point::max());
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

void Connection::write_head(const HttpResponse& response, std::optional<size_t> length) {
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
  hold_piece(std::move(head));
}

void Connection::hold_piece(std::string piece) {
  if (piece.empty()) return;
  queued_bytes_ += piece.size();
  queue_.push_back(std::move(piece));
}

void Connection::hold_body_piece(std::string piece) {
  if (piece.empty() || head_only_) return;
  hold_piece(chunked_ ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : std::move(piece));
}

void Connection::write_queue() {
  while (!queue_.empty() && !writing_) write_some();
}

void Connection::finish_reply() {
  ending_ = true;
  gone_ = nullptr;
  write_queue();
  if (!writing_) reply_is_out();
}

// A token's event fits into the socket's buffer: then there is nothing to wait for, and no timer to
// arm, which would cost more than the writing. Whether all of sending_ is out, or lost with the
// client.
bool Connection::write_at_once() {
  if (tls_) return false;
  SystemError error;
  const size_t written = plain_->write_some(asio::buffer(sending_), error);
  if (error == asio::error::would_block || error == asio::error::try_again) return false;
  if (error) {
    // Not here: the caller is at work on the reply whose end this would be.
    asio::post(io_, [self = shared_from_this()] { self->close(); });
    return true;
  }
  queued_bytes_ -= written;
  sending_.erase(0, written);
  if (!sending_.empty()) return false;
  writing_ = false;
  return true;
}

void Connection::write_some() {
  writing_ = true;
  sending_.clear();
  while (!queue_.empty() && sending_.size() < (256 << 10)) {
    sending_ += queue_.front();
    queue_.pop_front();
  }
  if (write_at_once()) return;
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
    self->write_queue();
    if (!self->writing_ && self->ending_) self->reply_is_out();
  };
  if (tls_) {
    asio::async_write(*tls_, asio::buffer(sending_), on_written);
  } else {
    asio::async_write(*plain_, asio::buffer(sending_), on_written);
  }
}

void Connection::reply_is_out() {
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

void Connection::linger() {
  if (closed_) return;
  SystemError ignored;
  lowest().shutdown(Socket::shutdown_send, ignored);
  lingering_ = true;
  arm_read_timer(std::chrono::seconds(2));
  if (!reading_) drain();
}

void Connection::drain() {
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

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (same_name(key, name)) return value;
  }
  return {};
}

}  // namespace nibble
