// How a checkpoint says it is quantized: hf_quant_config.json and config.json's
// quantization_config.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

enum class QuantAlgo { kNone, kFp8Block, kNvfp4 };

struct QuantConfig {
  QuantAlgo algo = QuantAlgo::kNone;
  std::string kv_cache_quant_algo;           // "FP8" or empty
  int group_size = 16;                       // NVFP4 block, columns
  std::vector<std::string> exclude_modules;  // shell wildcards on module paths
  std::string producer;                      // "modelopt 0.34.1.dev3"; empty when not said
  std::string source;                        // which file said so, for messages
  std::vector<std::string> warnings;         // e.g. a stale quantization_config
};

// Reads DIR's hf_quant_config.json, which wins, else config.json's quantization_config: form (b) of
// spec section 5.2 ("modelopt"), or DeepSeek's "fp8" with weight_block_size [128, 128].
// `has_nvfp4_weights` says whether U8 weights with weight_scale were seen, because an "fp8" entry
// beside those is stale. Errors: kCorrupt, kUnsupported (another quant_algo, group_size,
// weight_block_size), each naming the file, the field and what is supported.
Result<QuantConfig> load_quant_config(const std::filesystem::path& directory,
                                      bool has_nvfp4_weights);

// Whether a module path ("model.layers.3.self_attn.q_a_proj") matches one of the wildcards
// (fnmatch's *, ? and []; "prefix*" means the whole subtree).
bool is_excluded(const QuantConfig& config, std::string_view module);

}  // namespace nibble
