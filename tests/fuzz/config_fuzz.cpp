// config.json: an error, or sizes that everything after it can compute with.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = nibble::parse_json(text, "fuzz");
  if (json) {
    // What was read can be written and read again.
    const auto again = nibble::parse_json(nibble::to_json(*json, -1), "again");
    NIBBLE_CHECK(again.has_value());
    NIBBLE_CHECK(nibble::to_json(*again, -1) == nibble::to_json(*json, -1));
  }
  const auto config = nibble::parse_config(text, "fuzz");
  if (!config) {
    NIBBLE_CHECK(!config.error().message.empty());
    return 0;
  }
  NIBBLE_CHECK(config->hidden_size > 0 && config->vocab_size > 0);
  NIBBLE_CHECK(config->num_experts_per_tok <=
               config->topk_group * (config->n_routed_experts / config->n_group));
  for (const int64_t id : config->eos_token_ids) NIBBLE_CHECK(id >= 0 && id < config->vocab_size);
  return 0;
}
