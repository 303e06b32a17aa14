// Bytes of the MLA cache: one latent of kv_lora_rank numbers and one rotary key for each token and
// layer, shared by all heads. Source: planner.md section 4.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "nibble/checkpoint/config.h"

namespace nibble {

enum class KvFormat {
  kBf16,
  kFp8,    // one byte a number
  kFp8Ds,  // FP8 latent with a FP32 scale for each group of 128, rotary key in BF16
};
std::string_view kv_format_name(KvFormat format);  // "bf16", "fp8", "fp8-ds"
std::optional<KvFormat> parse_kv_format(std::string_view name);

inline constexpr int64_t kKvBlockTokens = 64;  // a sequence's cache is rounded up to this

// Bytes for one token in one layer: 1,152, 576 and 656 for DeepSeek-R1.
int64_t kv_bytes_per_token_and_layer(const ModelConfig& config, KvFormat format);

// In all layers; with draft tokens the MTP layers have a cache too.
int64_t kv_bytes_per_token(const ModelConfig& config, KvFormat format, bool with_mtp);

// Tokens rounded up to whole blocks. tokens in [0, 2^62].
int64_t round_up_to_blocks(int64_t tokens);

}  // namespace nibble
