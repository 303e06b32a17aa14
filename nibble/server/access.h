// Who may ask what: routes, keys, and web pages of other origins.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/server/api_error.h"
#include "nibble/server/http.h"

namespace nibble {

struct Route {
  std::string_view path;
  std::string_view methods;  // "GET", which HEAD goes with, or "POST"
  bool open;                 // without a key
};

// null for a path that is no route.
const Route* find_route(std::string_view path);

struct AccessOptions {
  std::vector<std::string> api_keys;  // none: open to everyone
  std::string admin_api_key;          // "": no /admin routes
  std::vector<std::string> cors_origins;
  bool protect_metrics = false;
};

// The key that a request brings, in x-api-key or as Authorization: Bearer; "" without one.
std::string_view request_key(const HttpRequest& request);

// Nothing when the request may be made. Errors: 401, 403, and 404 for /admin without a key of its
// own.
std::optional<ApiError> authorize(const AccessOptions& options, const HttpRequest& request);

// The headers of a reply to a page of another origin, when that is allowed.
void add_cors(const AccessOptions& options, const HttpRequest& request, HttpHeaders* headers);

// A path or name from a request, short and safe to repeat.
std::string printable_path(std::string_view text);

// Whether the texts are equal, in a time that depends on their lengths alone.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace nibble
