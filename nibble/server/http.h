// HTTP as the handlers see it: requests, replies, and who carries them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // without the query
  std::string query;   // behind '?', or ""
  HttpHeaders headers;
  std::string body;
  std::string client;  // address, for the log

  // The first header of that name, in any case of letters; "" without one.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
  bool close = false;  // the connection ends behind this
};

// Where one request's answer goes: either send(), or begin(), write() as often as wanted, end().
// Every function may be called from any thread; what comes after the client has gone is dropped.
class HttpReply {
 public:
  virtual ~HttpReply() = default;

  virtual void send(HttpResponse response) = 0;

  // A stream; head.body is not used. The head goes out with the first piece, and the end with the
  // last: each packet costs the kernel more than its making.
  virtual void begin(HttpResponse head) = 0;
  virtual void write(std::string piece) = 0;
  virtual void end(std::string last_piece) = 0;

  // Called once on the server's thread when the client is gone before the end. Set it on that
  // thread.
  virtual void on_gone(std::function<void()> callback) = 0;

  // Of a stream: written here and not yet taken by the socket.
  virtual size_t unsent_bytes() const = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // On the server's thread, which serves everyone: to be quick. May answer later.
  virtual void handle(HttpRequest request, std::shared_ptr<HttpReply> reply) = 0;

  // An answer to what never became a request: 400, 408, 413 or 431.
  virtual HttpResponse refusal(int status, std::string_view message) = 0;

  // Whether a body of so many bytes may come; asked before it is read. False: 413.
  virtual size_t max_body_bytes() const = 0;
};

struct HttpServerOptions {
  std::string unix_socket;  // a path, instead of host and port
  std::string host = "localhost";
  uint16_t port = 8000;          // 0: any free one
  std::string certificate_file;  // PEM; with key_file: TLS
  std::string key_file;
  int64_t max_connections = 4096;
  int64_t max_handshakes = 128;  // without a first request; beyond it the oldest gives way
  std::chrono::milliseconds header_timeout = std::chrono::seconds(10);
  std::chrono::milliseconds body_timeout = std::chrono::seconds(60);
  std::chrono::milliseconds idle_timeout = std::chrono::seconds(75);
  std::chrono::milliseconds write_timeout = std::chrono::seconds(60);
};

// HTTP/1.1 on one thread, by Boost.Beast and Asio.
class HttpServer {
 public:
  // Binds and listens; nothing is accepted before run(). `handler` outlives the server.
  // Errors: kUnavailable when the address can't be had; kInvalidArgument for a certificate or key
  // that can't be read.
  static Result<std::unique_ptr<HttpServer>> listen(const HttpServerOptions& options,
                                                    HttpHandler& handler);
  virtual ~HttpServer() = default;

  virtual uint16_t port() const = 0;  // 0 with unix_socket

  // Serves until stop(). `tick` is called on this thread every `interval`.
  virtual void run(std::chrono::milliseconds interval, std::function<void()> tick) = 0;

  // From any thread. Connections are closed.
  virtual void stop() = 0;

  // Runs `task` on the server's thread; from any thread.
  virtual void post(std::function<void()> task) = 0;

  // Reads certificate and key again, for new connections. Errors: kInvalidArgument; the old ones
  // stay.
  virtual Status reload_certificate() = 0;

  virtual int64_t num_connections() const = 0;
};

}  // namespace nibble
