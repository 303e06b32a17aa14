// Bytes on a connection: parsing, routing, access and refusals, over a Unix socket to a server in
// this process whose model never finishes loading.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "nibble/base/log.h"
#include "nibble/server/http.h"
#include "nibble/server/service.h"

namespace {

// Lives as long as the process: fuzzers end without destructors.
struct Target {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("nibble-fuzz-" + std::to_string(::getpid()) + ".sock"))
                         .string();
  std::unique_ptr<nibble::Service> service;
  std::unique_ptr<nibble::HttpServer> server;

  Target() {
    nibble::set_log_level(nibble::LogLevel::kError);
    nibble::ServiceOptions options;
    options.access.api_keys = {"key"};
    options.access.admin_api_key = "admin";
    options.access.cors_origins = {"https://app.example"};
    options.max_request_bytes = 4096;
    service = std::make_unique<nibble::Service>(options);
    nibble::HttpServerOptions http;
    http.unix_socket = path;
    http.header_timeout = std::chrono::milliseconds(200);
    http.body_timeout = std::chrono::milliseconds(200);
    auto listening = nibble::HttpServer::listen(http, *service);
    if (!listening) std::abort();
    server = *std::move(listening);
    service->attach(*server);
    std::thread([this] {
      server->run(std::chrono::milliseconds(50), [this] { service->tick(); });
    }).detach();
    std::atexit([] { (void)::unlink(instance().path.c_str()); });
  }
  static Target& instance() {
    static auto* const target = new Target;
    return *target;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Target& target = Target::instance();
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  target.path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    std::abort();  // the server is gone
  }
  size_t sent = 0;
  while (sent < size) {
    const ssize_t count = ::send(socket, data + sent, size - sent, MSG_NOSIGNAL);
    if (count <= 0) break;
    sent += static_cast<size_t>(count);
  }
  (void)::shutdown(socket, SHUT_WR);
  char buffer[4096];
  std::string answer;
  for (ssize_t count; (count = ::recv(socket, buffer, sizeof(buffer), 0)) > 0;) {
    if (answer.size() < 16) answer.append(buffer, static_cast<size_t>(count));
  }
  ::close(socket);
  // Whatever came: an answer that begins as one, or none, and no bug of ours.
  if (!answer.empty() && answer.rfind("HTTP/1.1 ", 0) != 0) std::abort();
  if (answer.rfind("HTTP/1.1 500", 0) == 0) std::abort();
  return 0;
}
