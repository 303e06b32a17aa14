#include "nibble/eval/http_client.h"

#include <fmt/format.h>
#include <openssl/err.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <cstdlib>
#include <optional>

#include "nibble/base/error.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxReplyBytes = uint64_t{256} << 20;

}  // namespace

// The socket, with TLS around it where the URL asks for it.
struct HttpClient::Connection {
  asio::io_context io{1};
  asio::ssl::context tls{asio::ssl::context::tls_client};
  std::optional<asio::ssl::stream<Tcp::socket>> stream;
  boost::beast::flat_buffer buffer;
  bool is_open = false;
  Clock::time_point deadline;
  const std::atomic<bool>* stop = nullptr;

  Tcp::socket& socket() { return stream->next_layer(); }

  void close() {
    SystemError ignored;
    if (stream) (void)socket().close(ignored);
    is_open = false;
    buffer.clear();
  }

  // Runs what was started until `error` is set. Nothing when it came in time.
  Status finish(const SystemError& error, const char* what) {
    io.restart();
    while (error == asio::error::would_block) {
      (void)io.run_one_for(std::chrono::milliseconds(100));
      if (error != asio::error::would_block) break;
      const bool stopped = stop != nullptr && stop->load();
      if (!stopped && Clock::now() < deadline) continue;
      close();
      (void)io.run();
      return stopped ? Status(cancelled("interrupted")) : Status(unsupported("timed out"));
    }
    if (!error) return {};
    return corrupt(fmt::format("{}: {}", what, error.message()));
  }

  Status open(const HttpUrl& url) {
    SystemError error;
    stream.emplace(io, tls);
    Tcp::resolver resolver(io);
    const auto addresses = resolver.resolve(url.host, url.port, error);
    if (error) return unavailable(fmt::format("{}: {}", url.host, error.message()));
    error = asio::error::would_block;
    asio::async_connect(socket(), addresses,
                        [&](SystemError result, const Tcp::endpoint&) { error = result; });
    Status connected = finish(error, "connect");
    if (!connected) {
      if (connected.error().code == ErrorCode::kCancelled) return connected;
      return unavailable(fmt::format("{}:{}: {}", url.host, url.port, connected.error().message));
    }
    SystemError ignored;
    (void)socket().set_option(Tcp::no_delay(true), ignored);
    if (url.is_tls) NIBBLE_TRY(shake_hands(url));
    is_open = true;
    return {};
  }

  Status shake_hands(const HttpUrl& url) {
    SystemError error;
    (void)tls.set_default_verify_paths(error);
    if (SSL_set_tlsext_host_name(stream->native_handle(), url.host.c_str()) != 1) {
      return unavailable(fmt::format("{}: TLS refuses this name", url.host));
    }
    (void)stream->set_verify_mode(asio::ssl::verify_peer, error);
    (void)stream->set_verify_callback(asio::ssl::host_name_verification(url.host), error);
    error = asio::error::would_block;
    stream->async_handshake(asio::ssl::stream_base::client,
                            [&](SystemError result) { error = result; });
    Status done = finish(error, "TLS handshake");
    if (done || done.error().code == ErrorCode::kCancelled) return done;
    return unavailable(fmt::format("{}:{}: {}", url.host, url.port, done.error().message));
  }

  // Writes the request and reads the reply over `layer`, the socket or the TLS stream.
  template <typename Layer>
  Result<HttpReply> talk(Layer& layer, const http::request<http::string_body>& request) {
    SystemError error = asio::error::would_block;
    http::async_write(layer, request, [&](SystemError result, size_t) { error = result; });
    NIBBLE_TRY(finish(error, "send"));
    http::response_parser<http::string_body> parser;
    parser.body_limit(kMaxReplyBytes);
    error = asio::error::would_block;
    http::async_read(layer, buffer, parser, [&](SystemError result, size_t) { error = result; });
    NIBBLE_TRY(finish(error, "receive"));
    HttpReply reply;
    reply.status = static_cast<int>(parser.get().result_int());
    const auto wait = parser.get()[http::field::retry_after];
    reply.retry_after = std::strtod(std::string(wait.data(), wait.size()).c_str(), nullptr);
    if (!parser.get().keep_alive()) close();
    reply.body = std::move(parser.get().body());
    return reply;
  }
};

Result<HttpUrl> parse_http_url(const std::string& url) {
  HttpUrl parts;
  std::string_view rest = url;
  const auto bad = [&] {
    return invalid_argument(
        fmt::format("the address is '{}', expected http://HOST[:PORT][/PREFIX] or https", url));
  };
  if (rest.starts_with("https://")) {
    parts.is_tls = true;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    return bad();
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  parts.prefix = rest.substr(slash);
  while (parts.prefix.ends_with('/')) parts.prefix.pop_back();
  parts.port = parts.is_tls ? "443" : "80";
  // [::1]:8000 too.
  const size_t bracket = authority.starts_with('[') ? authority.find(']') : 0;
  if (bracket == std::string_view::npos) return bad();
  const size_t colon = authority.find(':', bracket);
  if (colon != std::string_view::npos) {
    parts.port = authority.substr(colon + 1);
    authority = authority.substr(0, colon);
  }
  if (authority.starts_with('[')) authority = authority.substr(1, authority.size() - 2);
  parts.host = authority;
  const bool digits = parts.port.find_first_not_of("0123456789") == std::string::npos;
  if (parts.host.empty() || parts.port.empty() || !digits ||
      parts.host.find_first_of("@ \t\r\n") != std::string::npos ||
      parts.prefix.find_first_of(" \t\r\n?#") != std::string::npos) {
    return bad();
  }
  return parts;
}

HttpClient::HttpClient(HttpUrl url, const std::atomic<bool>* stop)
    : url_(std::move(url)), stop_(stop), connection_(std::make_unique<Connection>()) {
  connection_->stop = stop_;
}
HttpClient::~HttpClient() { connection_->close(); }

Result<HttpReply> HttpClient::request(const std::string& method, const std::string& path,
                                      const std::string& body, const Headers& headers,
                                      double timeout_seconds) {
  const bool was_kept = connection_->is_open;
  auto reply = exchange(method, path, body, headers, timeout_seconds);
  if (!reply && was_kept && reply.error().code == ErrorCode::kCorrupt) {
    reply = exchange(method, path, body, headers, timeout_seconds);
  }
  return reply;
}

Result<HttpReply> HttpClient::exchange(const std::string& method, const std::string& path,
                                       const std::string& body, const Headers& headers,
                                       double timeout_seconds) {
  Connection& c = *connection_;
  c.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(timeout_seconds));
  if (!c.is_open) NIBBLE_TRY(c.open(url_));
  http::request<http::string_body> request(method == "GET" ? http::verb::get : http::verb::post,
                                           url_.prefix + path, 11);
  const bool is_v6 = url_.host.find(':') != std::string::npos;
  request.set(http::field::host,
              fmt::format("{}{}{}:{}", is_v6 ? "[" : "", url_.host, is_v6 ? "]" : "", url_.port));
  request.set(http::field::user_agent, "nibble");
  request.set(http::field::accept, "application/json");
  for (const auto& [name, value] : headers) request.set(name, value);
  if (!body.empty()) {
    request.set(http::field::content_type, "application/json");
    request.body() = body;
  }
  request.prepare_payload();
  request.keep_alive(true);
  auto reply = url_.is_tls ? c.talk(*c.stream, request) : c.talk(c.socket(), request);
  if (reply) return reply;
  c.close();
  if (reply.error().message == "timed out") {
    return unsupported(fmt::format("timed out after {:g} s", timeout_seconds));
  }
  return reply;
}

}  // namespace nibble
