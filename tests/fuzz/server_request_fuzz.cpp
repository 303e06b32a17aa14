// Request bodies: parsing, and the two APIs that are turned into chat requests.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto body = nibble::parse_request_json(text);
  if (!body) return 0;
  // What a member of the wrong type deep inside throws is caught where requests are handled.
  try {
    (void)nibble::messages_to_chat(*body);
  } catch (const nlohmann::json::exception&) {
    (void)0;
  }
  try {
    (void)nibble::responses_to_chat(*body);
  } catch (const nlohmann::json::exception&) {
    (void)0;
  }
  return 0;
}
