// A small web server for the pages of `nibble plan`.
#pragma once

#include <cstdint>
#include <string>

#include "nibble/base/result.h"

namespace nibble {

struct PlanPages {
  std::string html;  // at /
  std::string json;  // at /devices.json
};

// Answers GET and HEAD on 127.0.0.1:port, one request at a time, until Ctrl-C; port 0 picks a free
// one. Prints where it listens. Errors: kUnavailable when the port is taken; kUnsupported in a
// build without Boost.
Status serve_plan_pages(const PlanPages& pages, uint16_t port);

}  // namespace nibble
