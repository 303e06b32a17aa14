#include "nibble/engine/kv_cache.h"

#include <fmt/format.h>

#include "nibble/base/error.h"

namespace nibble {
namespace {

int64_t num_cached_layers(const ModelConfig& config, bool with_mtp) {
  return config.num_hidden_layers + (with_mtp && config.num_nextn_predict_layers > 0 ? 1 : 0);
}

}  // namespace

Result<KvCache> KvCache::create(const ModelConfig& config, const KvCacheOptions& options,
                                Device& device) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kBf16 &&
      options.dtype != DType::kF8E4m3) {
    return invalid_argument(fmt::format("the KV cache can't be {}, only F32, BF16 or F8_E4M3",
                                        dtype_name(options.dtype)));
  }
  if (options.block_size < 1 || options.num_blocks < 1) {
    return invalid_argument(fmt::format("a KV cache of {} blocks of {} tokens holds nothing",
                                        options.num_blocks, options.block_size));
  }
  const uint64_t tokens = static_cast<uint64_t>(options.num_blocks * options.block_size);
  const uint64_t total = tokens * bytes_per_token(config, options.dtype, options.with_mtp);
  KvCache cache;
  cache.buffer_ = NIBBLE_TRY(with_context(device.allocate_for(MemoryUse::kKvCache, total),
                                          fmt::format("KV cache for {} tokens", tokens)));
  const int64_t entry_size = config.kv_lora_rank + config.qk_rope_head_dim;
  const int64_t layer_bytes = static_cast<int64_t>(tokens) * entry_size * dtype_size(options.dtype);
  for (int64_t i = 0; i < num_cached_layers(config, options.with_mtp); ++i) {
    cache.layers_.push_back(KvCacheView{cache.buffer_.as<char>() + i * layer_bytes, options.dtype,
                                        options.num_blocks, options.block_size, entry_size});
  }
  return cache;
}

uint64_t KvCache::bytes_per_token(const ModelConfig& config, DType dtype, bool with_mtp) {
  return static_cast<uint64_t>((config.kv_lora_rank + config.qk_rope_head_dim) * dtype_size(dtype) *
                               num_cached_layers(config, with_mtp));
}

Result<DType> parse_kv_cache_dtype(std::string_view name) {
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBf16;
  if (name == "fp8") return DType::kF8E4m3;
  return invalid_argument(
      fmt::format("KV cache type is '{}', expected auto, f32, bf16 or fp8", name));
}

}  // namespace nibble
