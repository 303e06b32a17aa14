#include "nibble/cli/plan_serve.h"

#include "nibble/base/error.h"

#ifdef NIBBLE_HAVE_BOOST

#include <fmt/format.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/version.hpp>
#include <chrono>
#include <cstdio>
#include <thread>

#include "nibble/base/interrupt.h"
#include "nibble/cli/cli_common.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Tcp = asio::ip::tcp;

constexpr auto kSlowestClient = std::chrono::seconds(10);
constexpr auto kLookForInterrupt = std::chrono::milliseconds(200);
constexpr size_t kMaxRequestBytes = 16 << 10;

http::response<http::string_body> answer(const http::request<http::string_body>& request,
                                         const PlanPages& pages) {
  http::response<http::string_body> reply;
  reply.version(request.version());
  reply.set(http::field::server, "nibble");
  reply.set("X-Content-Type-Options", "nosniff");
  reply.keep_alive(false);
  const auto fill = [&](http::status status, const char* type, const std::string& body) {
    reply.result(status);
    reply.set(http::field::content_type, type);
    if (request.method() != http::verb::head) reply.body() = body;
    reply.content_length(body.size());
  };
  const std::string_view target(request.target().data(), request.target().size());
  const std::string_view path = target.substr(0, target.find('?'));
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    reply.set(http::field::allow, "GET, HEAD");
    fill(http::status::method_not_allowed, "text/plain", "only GET and HEAD\n");
  } else if (path == "/") {
    fill(http::status::ok, "text/html; charset=utf-8", pages.html);
  } else if (path == "/devices.json") {
    fill(http::status::ok, "application/json", pages.json);
  } else {
    fill(http::status::not_found, "text/plain", "/ is the page, /devices.json its data\n");
  }
  return reply;
}

// One request, one reply. A client that is slow, wrong or gone costs its own connection only.
void serve_one(Tcp::socket socket, asio::io_context& context, const PlanPages& pages) {
  beast::tcp_stream stream(std::move(socket));
  stream.expires_after(kSlowestClient);
  beast::flat_buffer buffer;
  http::request_parser<http::string_body> parser;
  parser.header_limit(kMaxRequestBytes);
  parser.body_limit(kMaxRequestBytes);
  // Timeouts hold for asynchronous calls alone, so the calls are made so and waited for.
  beast::error_code error;
  http::async_read(stream, buffer, parser, [&](beast::error_code e, size_t) { error = e; });
  context.restart();
  context.run();
  if (error) return;
  const auto reply = answer(parser.get(), pages);
  http::async_write(stream, reply, [&](beast::error_code e, size_t) { error = e; });
  context.restart();
  context.run();
  beast::error_code ignored;
  stream.socket().shutdown(Tcp::socket::shutdown_send, ignored);
}

}  // namespace

Status serve_plan_pages(const PlanPages& pages, uint16_t port) {
  asio::io_context context;
  beast::error_code error;
  Tcp::acceptor acceptor(context);
  const Tcp::endpoint address(asio::ip::address_v4::loopback(), port);
  acceptor.open(address.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(address, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) acceptor.non_blocking(true, error);
  if (error) {
    return unavailable(fmt::format("cannot listen on 127.0.0.1:{}: {}", port, error.message()));
  }
  print(fmt::format("http://127.0.0.1:{}/ shows the table; Ctrl-C ends\n",
                    acceptor.local_endpoint().port()));
  (void)std::fflush(stdout);
  while (!interrupted()) {
    Tcp::socket socket(context);
    acceptor.accept(socket, error);
    if (!error) {
      serve_one(std::move(socket), context, pages);
    } else if (error == asio::error::would_block) {
      std::this_thread::sleep_for(kLookForInterrupt);
    }
  }
  return {};
}

}  // namespace nibble

#else

namespace nibble {

Status serve_plan_pages(const PlanPages&, uint16_t) {
  return unsupported(
      "this nibble was built without Boost (package libboost-dev), which --serve "
      "needs; --html FILE writes the same page");
}

}  // namespace nibble

#endif
