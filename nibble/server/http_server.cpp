// Who listens, and for how many. With http_connection.cpp the server's side of Beast and Asio.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/short_turns.h"
#include "nibble/server/http_connection.h"

namespace nibble {
namespace {

using Tcp = asio::ip::tcp;
using Local = asio::local::stream_protocol;
using Clock = std::chrono::steady_clock;

class AsioServer final : public HttpServer {
 public:
  AsioServer(const HttpServerOptions& options, HttpHandler& handler)
      : io_(1),
        acceptor_(io_),
        local_acceptor_(io_),
        timer_(io_),
        retry_(io_),
        shared_(std::make_shared<ConnectionShared>()) {
    shared_->options = options;
    shared_->handler = &handler;
  }

  ~AsioServer() override {
    if (!local_path_.empty()) (void)::unlink(local_path_.c_str());
  }
  AsioServer(const AsioServer&) = delete;
  AsioServer& operator=(const AsioServer&) = delete;

  Status open() {
    const HttpServerOptions& options = shared_->options;
    if (!options.certificate_file.empty()) NIBBLE_TRY(reload_certificate());
    if (!options.unix_socket.empty()) return open_local(options.unix_socket);
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
    return unavailable(fmt::format("cannot listen on {}: {}{}", where, error.message(),
                                   error == asio::error::address_in_use
                                       ? "; --port takes another one, 0 any that is free"
                                       : ""));
  }

  uint16_t port() const override { return port_; }
  int64_t num_connections() const override { return shared_->num_connections; }
  void post(std::function<void()> task) override { asio::post(io_, std::move(task)); }

  void run(std::chrono::milliseconds interval, std::function<void()> tick) override {
    interval_ = interval;
    tick_ = std::move(tick);
    (void)ask_for_short_turns();  // the engine computes on every processor
    if (local_acceptor_.is_open()) {
      accept(local_acceptor_);
    } else {
      accept(acceptor_);
    }
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
  Status open_local(const std::string& path) {
    SystemError error;
    const auto failed = [&] {
      return unavailable(fmt::format("cannot listen on {}: {}", path, error.message()));
    };
    constexpr size_t kMaxPath = 107;  // sockaddr_un::sun_path, without its zero
    if (path.size() > kMaxPath) {
      return invalid_argument(
          fmt::format("cannot listen on {}: the path is longer than {} bytes", path, kMaxPath));
    }
    // A socket that nobody listens on was left by a server that was killed.
    struct stat info {};
    if (::lstat(path.c_str(), &info) == 0) {
      if (!S_ISSOCK(info.st_mode)) {
        return unavailable(fmt::format("cannot listen on {}: it is there and no socket", path));
      }
      Local::socket probe(io_);
      probe.connect(Local::endpoint(path), error);
      if (!error) return unavailable(fmt::format("cannot listen on {}: it is in use", path));
      (void)::unlink(path.c_str());
      error = {};
    }
    local_acceptor_.open(Local(), error);
    if (!error) local_acceptor_.bind(Local::endpoint(path), error);
    if (error) return failed();
    local_path_ = path;
    local_acceptor_.listen(4096, error);
    if (error) return failed();
    return {};
  }

  template <typename Acceptor>
  void accept(Acceptor& acceptor) {
    using Socket = typename Acceptor::protocol_type::socket;
    acceptor.async_accept([this, &acceptor](SystemError error, Socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {  // out of file descriptors, most likely: others have to end first
        log_warning(fmt::format("cannot accept a connection: {}", error.message()));
        retry_.expires_after(std::chrono::milliseconds(50));
        retry_.async_wait([this, &acceptor](SystemError e) {
          if (!e) accept(acceptor);
        });
        return;
      }
      take(std::move(socket));
      accept(acceptor);
    });
  }

  void take(Tcp::socket socket) {
    SystemError error;
    const auto peer = socket.remote_endpoint(error);
    if (error) return;
    SystemError ignored;
    socket.set_option(Tcp::no_delay(true), ignored);
    take(Connection::Socket(std::move(socket)), peer.address().to_string());
  }
  void take(Local::socket socket) { take(Connection::Socket(std::move(socket)), "local"); }
  void take(Connection::Socket socket, std::string client) {
    make_room();
    if (shared_->num_connections >= shared_->options.max_connections) return;  // closes it
    std::make_shared<Connection>(std::move(socket), std::move(client), io_, tls_, shared_)->start();
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
  Local::acceptor local_acceptor_;
  asio::steady_timer timer_;
  asio::steady_timer retry_;
  std::shared_ptr<ConnectionShared> shared_;
  std::shared_ptr<asio::ssl::context> tls_;
  uint16_t port_ = 0;
  std::string local_path_;
  std::chrono::milliseconds interval_{};
  std::function<void()> tick_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const HttpServerOptions& options,
                                                       HttpHandler& handler) {
  auto server = std::make_unique<AsioServer>(options, handler);
  NIBBLE_TRY(server->open());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace nibble
