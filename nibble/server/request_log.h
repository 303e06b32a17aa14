// One line for each request, for people or for machines; spec serving section 7.2.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/server/reply_writer.h"

namespace nibble {

struct RequestRecord {
  std::string id;
  std::string trace_id;  // "" : none was sent
  std::string client;
  std::string route;
  int status = 200;
  std::string finish;
  Usage usage;
  int64_t num_windows = 0;  // verified windows of drafts; 0: nothing about them is told
  double queue_ms = 0;
  double ttft_ms = 0;
  double tpot_ms = 0;
  double end_to_end_ms = 0;
};

void log_request(const RequestRecord& record, bool as_json);

// A text of a request, with --log_prompts alone. `what`: "prompt" or "output".
void log_text(std::string_view what, const std::string& request_id, std::string_view text);

// The trace id of a W3C `traceparent` header, "" when it is malformed or absent.
std::string trace_id_of(std::string_view traceparent);

}  // namespace nibble
