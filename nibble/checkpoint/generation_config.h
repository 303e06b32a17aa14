// generation_config.json: how a model's makers sample from it.
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// What the file says; a field that it does not have stays empty.
struct GenerationConfig {
  std::optional<double> temperature;  // 0 where do_sample is false
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
};

// Errors: kCorrupt for malformed JSON or a value of the wrong kind or out of range (temperature
// 0..2, top_p above 0 and at most 1, top_k -1 or more).
Result<GenerationConfig> parse_generation_config(std::string_view json, std::string_view where);

// DIR/generation_config.json; an empty GenerationConfig when there is no such file.
Result<GenerationConfig> load_generation_config(const std::filesystem::path& directory);

}  // namespace nibble
