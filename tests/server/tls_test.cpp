// https with a certificate of its own, and Unix sockets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

#include "tests/server/test_server.h"

namespace nibble {
namespace {

using testing::chat_body;
using testing::Client;
using ::testing::HasSubstr;
using testing::request_text;
using testing::TestServer;

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (std::to_string(::getpid()) + "-" + name))
      .string();
}

// A self-signed certificate for localhost.
void write_certificate(const std::string& certificate_file, const std::string& key_file) {
  EVP_PKEY* key = EVP_RSA_gen(2048);
  X509* certificate = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_sign(certificate, key, EVP_sha256());
  FILE* file = std::fopen(certificate_file.c_str(), "w");
  PEM_write_X509(file, certificate);
  std::fclose(file);
  file = std::fopen(key_file.c_str(), "w");
  PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  std::fclose(file);
  X509_free(certificate);
  EVP_PKEY_free(key);
}

int connect_to(uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience{30, 0};
  (void)::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  EXPECT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return socket;
}

// Sends a request that ends the connection over TLS; the whole answer, "" when the handshake fails.
// `fingerprint`: of the server's certificate.
std::string ask_over_tls(uint16_t port, const std::string& request, int max_version = 0,
                         std::string* fingerprint = nullptr) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_security_level(context, 0);
  if (max_version != 0) {
    SSL_CTX_set_min_proto_version(context, max_version);
    SSL_CTX_set_max_proto_version(context, max_version);
  }
  SSL* ssl = SSL_new(context);
  const int socket = connect_to(port);
  SSL_set_fd(ssl, socket);
  std::string answer;
  if (SSL_connect(ssl) == 1) {
    if (fingerprint != nullptr) {
      X509* peer = SSL_get1_peer_certificate(ssl);
      unsigned char hash[32];
      unsigned size = sizeof(hash);
      X509_digest(peer, EVP_sha256(), hash, &size);
      fingerprint->assign(reinterpret_cast<const char*>(hash), size);
      X509_free(peer);
    }
    SSL_write(ssl, request.data(), static_cast<int>(request.size()));
    char buffer[4096];
    for (int count = 0; (count = SSL_read(ssl, buffer, sizeof(buffer))) > 0;)
      answer.append(buffer, static_cast<size_t>(count));
  }
  SSL_free(ssl);
  SSL_CTX_free(context);
  ::close(socket);
  return answer;
}

class NoHandler final : public HttpHandler {
  void handle(HttpRequest, std::shared_ptr<HttpReply>) override {}
  HttpResponse refusal(int, std::string_view) override { return {}; }
  size_t max_body_bytes() const override { return 0; }
};

TEST(Tls, ServesAndStreamsAndReloadsItsCertificate) {
  HttpServerOptions http;
  http.certificate_file = temporary("cert.pem");
  http.key_file = temporary("key.pem");
  http.header_timeout = std::chrono::milliseconds(500);
  write_certificate(http.certificate_file, http.key_file);
  TestServer server({}, http);
  const std::string last = "Connection: close\r\n";
  std::string before;
  EXPECT_THAT(ask_over_tls(server.port(), request_text("GET", "/health", "", last), 0, &before),
              HasSubstr("{\"status\":\"ok\"}"));
  const std::string body = chat_body("Hello!", {{"stream", true}}).dump();
  const std::string stream =
      ask_over_tls(server.port(), request_text("POST", "/v1/chat/completions", body, last));
  EXPECT_THAT(stream, HasSubstr("chat.completion.chunk"));
  EXPECT_THAT(stream, HasSubstr("data: [DONE]"));
  EXPECT_NE(ask_over_tls(server.port(), request_text("GET", "/health", "", last), TLS1_2_VERSION),
            "");
  EXPECT_EQ(ask_over_tls(server.port(), request_text("GET", "/health", "", last), TLS1_1_VERSION),
            "");

  // Who doesn't speak TLS, or says nothing, is sent away; who leaves in the middle is forgotten.
  Client plain(server.port());
  plain.send(request_text("GET", "/health"));
  EXPECT_THAT(plain.receive_all(), ::testing::Not(HasSubstr("HTTP/1.1 200")));
  Client silent(server.port());
  EXPECT_EQ(silent.receive_all(), "");

  write_certificate(http.certificate_file, http.key_file);
  std::atomic<bool> reloaded{false};
  server.post([&] { reloaded = server.reload_certificate().has_value(); });
  std::string after;
  for (int i = 0; i < 100 && (after.empty() || after == before); ++i) {
    (void)ask_over_tls(server.port(), request_text("GET", "/health", "", last), 0, &after);
  }
  EXPECT_TRUE(reloaded);
  EXPECT_NE(after, before);
  // A file that is none keeps the old one.
  std::ofstream(http.certificate_file) << "nothing";
  std::atomic<int> kept{-1};
  server.post([&] { kept = server.reload_certificate().has_value() ? 0 : 1; });
  std::string last_one;
  (void)ask_over_tls(server.port(), request_text("GET", "/health", "", last), 0, &last_one);
  EXPECT_EQ(kept, 1);
  EXPECT_EQ(last_one, after);
  std::filesystem::remove(http.certificate_file);
  std::filesystem::remove(http.key_file);
}

TEST(Tls, BadFilesAreRefused) {
  NoHandler handler;
  HttpServerOptions http;
  http.port = 0;
  http.certificate_file = "/nonexistent/cert.pem";
  http.key_file = "/nonexistent/key.pem";
  const auto server = HttpServer::listen(http, handler);
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(server.error().message, HasSubstr("/nonexistent/cert.pem"));
}

TEST(UnixSocket, ServesAndCleansUp) {
  HttpServerOptions http;
  http.unix_socket = temporary("nibble.sock");
  const auto ask = [&] {
    const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    http.unix_socket.copy(address.sun_path, sizeof(address.sun_path) - 1);
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      return std::string();
    const std::string request = request_text("GET", "/health", "", "Connection: close\r\n");
    (void)::send(socket, request.data(), request.size(), MSG_NOSIGNAL);
    std::string answer;
    char buffer[1000];
    for (ssize_t count = 0; (count = ::recv(socket, buffer, sizeof(buffer), 0)) > 0;)
      answer.append(buffer, static_cast<size_t>(count));
    ::close(socket);
    return answer;
  };
  {
    const TestServer server({}, http);
    EXPECT_THAT(ask(), HasSubstr("{\"status\":\"ok\"}"));
  }
  EXPECT_FALSE(std::filesystem::exists(http.unix_socket));
  // What a killed server left is taken over; what is no socket is not.
  const int left = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  http.unix_socket.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(left, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ::close(left);
  {
    const TestServer server({}, http);
    EXPECT_THAT(ask(), HasSubstr("{\"status\":\"ok\"}"));
  }
  std::ofstream(http.unix_socket) << "a file";
  NoHandler handler;
  const auto refused = HttpServer::listen(http, handler);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("no socket"));
  std::filesystem::remove(http.unix_socket);
}

}  // namespace
}  // namespace nibble
