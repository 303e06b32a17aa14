#include "nibble/plan/kv_cache_size.h"

namespace nibble {

std::string_view kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kBf16:
      return "bf16";
    case KvFormat::kFp8:
      return "fp8";
    case KvFormat::kFp8Ds:
      return "fp8-ds";
  }
  return "?";
}

std::optional<KvFormat> parse_kv_format(std::string_view name) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8, KvFormat::kFp8Ds}) {
    if (name == kv_format_name(format)) return format;
  }
  return std::nullopt;
}

int64_t kv_bytes_per_token_and_layer(const ModelConfig& config, KvFormat format) {
  const int64_t latent = config.kv_lora_rank;
  const int64_t rope = config.qk_rope_head_dim;
  switch (format) {
    case KvFormat::kBf16:
      return 2 * (latent + rope);
    case KvFormat::kFp8:
      return latent + rope;
    case KvFormat::kFp8Ds:
      return latent + 4 * ((latent + 127) / 128) + 2 * rope;
  }
  return 0;
}

int64_t kv_bytes_per_token(const ModelConfig& config, KvFormat format, bool with_mtp) {
  const int64_t layers =
      config.num_hidden_layers + (with_mtp ? config.num_nextn_predict_layers : 0);
  return layers * kv_bytes_per_token_and_layer(config, format);
}

int64_t round_up_to_blocks(int64_t tokens) {
  return (tokens + kKvBlockTokens - 1) / kKvBlockTokens * kKvBlockTokens;
}

}  // namespace nibble
