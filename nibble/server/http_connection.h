// One client's connection: requests are parsed by Beast; replies are few and simple and are put
// together here. For http_server.cpp alone, as it brings Beast and Asio.
#pragma once

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/server/http.h"

namespace nibble {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using SystemError = boost::system::error_code;

class Connection;

// What the connections of a server share.
struct ConnectionShared {
  HttpServerOptions options;
  HttpHandler* handler = nullptr;
  int64_t num_connections = 0;
  // Connections without a request, the longest waiting first: those that never sent one (TLS and
  // half-sent headers count too), and those between two requests.
  std::list<Connection*> fresh;
  std::list<Connection*> idle;
};

// One client. All on the io_context's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = asio::generic::stream_protocol::socket;

  Connection(Socket socket, std::string client, asio::io_context& io,
             const std::shared_ptr<asio::ssl::context>& tls,
             std::shared_ptr<ConnectionShared> shared);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  void start();
  void close();

  asio::io_context& io() { return io_; }
  std::chrono::steady_clock::time_point since() const { return since_; }

  // The functions of Reply, on the io_context's thread.
  void send(HttpResponse response);
  void begin(const HttpResponse& head);
  void write(std::string piece);
  void end(std::string last_piece);
  void set_gone(std::function<void()> callback);
  size_t unsent_bytes() const { return queued_bytes_; }
  // A handler that let go of its reply without an answer.
  void abandoned(int64_t serial);

 private:
  Socket& lowest() { return tls_ ? tls_->next_layer() : *plain_; }

  void join(std::list<Connection*>& list);
  void no_longer_counted();
  void leave();
  void arm_read_timer(std::chrono::milliseconds timeout, int status = 0);

  // Reads until something is there. Stays outstanding while a reply is made: so the end of the
  // client is seen at once.
  void wait_for_request(std::chrono::milliseconds timeout);
  void read_header();
  bool is_refused();
  void on_header(SystemError error);
  void refuse_for(SystemError error);
  void refuse(int status, std::string_view message);
  void on_request(SystemError error);

  // Without `length`: a stream.
  void write_head(const HttpResponse& response, std::optional<size_t> length);
  void hold_piece(std::string piece);  // until the next one, or the end
  void hold_body_piece(std::string piece);
  void write_queue();
  void finish_reply();
  void write_some();
  bool write_at_once();
  void reply_is_out();

  // Says that nothing more will come and reads on for a moment: closing a socket with unread data
  // would reset it, and the client would lose the answer.
  void linger();
  void drain();

  asio::io_context& io_;
  std::string client_;
  std::shared_ptr<ConnectionShared> shared_;
  std::shared_ptr<asio::ssl::context> tls_context_;
  std::optional<Socket> plain_;
  std::optional<asio::ssl::stream<Socket>> tls_;
  asio::steady_timer read_timer_;
  asio::steady_timer write_timer_;

  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  bool reading_ = false;  // a read is outstanding, and buffer_ is its own
  std::list<Connection*>* list_ = nullptr;
  std::list<Connection*>::iterator place_;
  std::chrono::steady_clock::time_point since_;

  int64_t serial_ = 0;
  bool counted_ = true;
  bool closed_ = false;
  bool replying_ = false;   // between a request and the last byte of its answer
  bool streaming_ = false;  // begin() was called
  bool ending_ = false;     // all of the answer is queued
  bool lingering_ = false;  // nothing is answered any more
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;
  std::function<void()> gone_;

  std::deque<std::string> queue_;
  std::string sending_;
  bool writing_ = false;
  size_t queued_bytes_ = 0;
};

}  // namespace nibble
