// config.json and its companions in the words of each format that nibble convert writes.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/quantize/convert.h"

namespace nibble {

// (file name, text): config.json, and hf_quant_config.json for kModelOpt. `config_text` is the
// source's config.json. Errors: kCorrupt for malformed JSON; those of load_quant_config.
Result<std::vector<std::pair<std::string, std::string>>> converted_configs(
    const std::filesystem::path& source, std::string_view config_text, ConvertFormat format);

}  // namespace nibble
