#include "nibble/server/access.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr Route kRoutes[] = {
    {"/v1/chat/completions", "POST", false},
    {"/v1/completions", "POST", false},
    {"/v1/messages", "POST", false},
    {"/v1/messages/count_tokens", "POST", false},
    {"/v1/responses", "POST", false},
    {"/v1/models", "GET", false},
    {"/tokenize", "POST", false},
    {"/v1/tokenize", "POST", false},
    {"/detokenize", "POST", false},
    {"/v1/detokenize", "POST", false},
    {"/live", "GET", true},
    {"/health", "GET", true},
    {"/ping", "GET", true},
    {"/health_generate", "GET", false},
    {"/ready", "GET", true},
    {"/version", "GET", true},
    {"/metrics", "GET", true},
    {"/prometheus/metrics", "GET", true},
    {"/server_info", "GET", false},
    {"/openapi.json", "GET", true},
    {"/admin/abort", "POST", false},
    {"/admin/reset_prefix_cache", "POST", false},
    {"/admin/log_level", "POST", false},
    {"/", "GET", true},
};

}  // namespace

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

std::string_view request_key(const HttpRequest& request) {
  const std::string_view key = request.header("x-api-key");
  const std::string_view bearer = request.header("Authorization");
  if (!key.empty() || bearer.size() <= 7 || (bearer[0] != 'B' && bearer[0] != 'b')) return key;
  return bearer.substr(7);
}

std::string printable_path(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 200)) out += c > ' ' && c < 0x7f ? c : '?';
  return out;
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned>(a[i] ^ other);
  }
  return difference == 0;
}

std::optional<ApiError> authorize(const AccessOptions& options, const HttpRequest& request) {
  const std::string& path = request.path;
  const std::string_view key = request_key(request);
  ApiError wrong = bad_request("the API key is missing or wrong; send it as Authorization: Bearer",
                               "invalid_api_key");
  wrong.status = 401;
  wrong.type = "authentication_error";
  wrong.headers.emplace_back("WWW-Authenticate", "Bearer");
  bool known = false;
  // All of them are compared, so that the time tells nothing.
  for (const std::string& one : options.api_keys) known |= equal_in_constant_time(key, one);
  if (path.starts_with("/admin/")) {
    if (options.admin_api_key.empty()) return not_found_error("there is no such route");
    if (equal_in_constant_time(key, options.admin_api_key)) return std::nullopt;
    if (!known) return wrong;
    wrong.status = 403;
    wrong.type = "permission_error";
    wrong.code = "";
    wrong.message = "this key may not use /admin";
    wrong.headers.clear();
    return wrong;
  }
  const Route* route = find_route(path);
  const bool is_metrics = path == "/metrics" || path == "/prometheus/metrics";
  const bool open = route != nullptr && route->open && !(is_metrics && options.protect_metrics);
  if (options.api_keys.empty() || open || known) return std::nullopt;
  return wrong;
}

void add_cors(const AccessOptions& options, const HttpRequest& request, HttpHeaders* headers) {
  const std::string_view origin = request.header("Origin");
  if (origin.empty() || options.cors_origins.empty()) return;
  const auto& allowed = options.cors_origins;
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return;
  headers->emplace_back("Access-Control-Allow-Origin", any ? "*" : std::string(origin));
  if (!any) headers->emplace_back("Vary", "Origin");
  headers->emplace_back("Access-Control-Expose-Headers", "x-request-id, x-nibble-ignored-fields");
  if (request.method != "OPTIONS") return;
  headers->emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  const std::string_view wanted = request.header("Access-Control-Request-Headers");
  headers->emplace_back(
      "Access-Control-Allow-Headers",
      wanted.empty() ? "authorization, content-type, x-api-key" : std::string(wanted));
  headers->emplace_back("Access-Control-Max-Age", "600");
}

}  // namespace nibble
