// Requests to a server over HTTP or HTTPS, one connection that is kept while it can be.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

struct HttpUrl {
  bool is_tls = false;
  std::string host;
  std::string port;
  std::string prefix;  // "" or "/v1": stands before every path
};

// http[s]://HOST[:PORT][/PREFIX]. Errors: kInvalidArgument.
Result<HttpUrl> parse_http_url(const std::string& url);

struct HttpReply {
  int status = 0;
  std::string body;
  double retry_after = 0;  // seconds that the server asks for; 0: nothing said
};

// Not thread-safe: each thread has its own. Certificates are checked against the system's.
class HttpClient {
 public:
  // `stop`, when it becomes true, ends what waits within a fraction of a second.
  HttpClient(HttpUrl url, const std::atomic<bool>* stop);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  using Headers = std::vector<std::pair<std::string, std::string>>;

  // `method` is GET or POST; `path` comes behind the prefix. A kept connection that the server
  // closed meanwhile is opened again once. Errors: kUnavailable when no connection can be made;
  // kCorrupt when one breaks or answers no HTTP; kOutOfMemory beyond 256 MiB of reply; kCancelled
  // by `stop`; kUnsupported "timed out after N s" beyond `timeout_seconds`.
  Result<HttpReply> request(const std::string& method, const std::string& path,
                            const std::string& body, const Headers& headers,
                            double timeout_seconds);

 private:
  struct Connection;
  Result<HttpReply> exchange(const std::string& method, const std::string& path,
                             const std::string& body, const Headers& headers,
                             double timeout_seconds);

  HttpUrl url_;
  const std::atomic<bool>* stop_;
  std::unique_ptr<Connection> connection_;
};

}  // namespace nibble
