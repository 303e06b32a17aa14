#include "nibble/server/request_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/base/log.h"

namespace nibble {
namespace {

double acceptance_length(const RequestRecord& record) {
  return 1 + static_cast<double>(record.usage.accepted_tokens) /
                 static_cast<double>(record.num_windows);
}

}  // namespace

void log_request(const RequestRecord& r, bool as_json) {
  const auto rounded = [](double value) { return std::round(value * 100) / 100; };
  if (as_json) {
    nlohmann::ordered_json json = {{"event", "request"},
                                   {"id", r.id},
                                   {"client", r.client},
                                   {"route", r.route},
                                   {"status", r.status},
                                   {"finish", r.finish},
                                   {"prompt", r.usage.prompt_tokens},
                                   {"cached", r.usage.cached_tokens},
                                   {"output", r.usage.completion_tokens},
                                   {"reasoning", r.usage.reasoning_tokens},
                                   {"queue_ms", rounded(r.queue_ms)},
                                   {"ttft_ms", rounded(r.ttft_ms)},
                                   {"tpot_ms", rounded(r.tpot_ms)},
                                   {"e2e_ms", rounded(r.end_to_end_ms)}};
    if (r.num_windows > 0) json["accept"] = rounded(acceptance_length(r));
    if (!r.trace_id.empty()) json["trace_id"] = r.trace_id;
    return log_info(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  }
  std::string line = fmt::format(
      "request id={} client={} route={} status={} finish={} prompt={} cached={} output={} "
      "reasoning={} queue_ms={:.1f} ttft_ms={:.1f} tpot_ms={:.2f} e2e_ms={:.1f}",
      r.id, r.client, r.route, r.status, r.finish, r.usage.prompt_tokens, r.usage.cached_tokens,
      r.usage.completion_tokens, r.usage.reasoning_tokens, r.queue_ms, r.ttft_ms, r.tpot_ms,
      r.end_to_end_ms);
  if (r.num_windows > 0) line += fmt::format(" accept={:.1f}", acceptance_length(r));
  if (!r.trace_id.empty()) line += " trace_id=" + r.trace_id;
  log_info(line);
}

void log_text(std::string_view what, const std::string& request_id, std::string_view text) {
  log_info(fmt::format("{} id={} text={}", what, request_id, json_text(text)));
}

// "00-" 32 hexadecimal digits "-" 16 of them "-" 2 of them; https://www.w3.org/TR/trace-context/.
std::string trace_id_of(std::string_view traceparent) {
  constexpr size_t kSize = 55;
  const bool sized =
      traceparent.size() == kSize ||
      (traceparent.size() > kSize && traceparent[kSize] == '-' && !traceparent.starts_with("00"));
  if (!sized || traceparent.starts_with("ff")) return "";
  for (size_t i = 0; i < kSize; ++i) {
    const char c = traceparent[i];
    const bool is_dash = i == 2 || i == 35 || i == 52;
    const bool is_hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (is_dash ? c != '-' : !is_hex) return "";
  }
  const std::string_view id = traceparent.substr(3, 32);
  if (std::all_of(id.begin(), id.end(), [](char c) { return c == '0'; })) return "";
  return std::string(id);
}

}  // namespace nibble
