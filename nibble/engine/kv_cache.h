// The pages of the MLA cache, one set a layer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/device/device.h"
#include "nibble/kernels/attention_view.h"

namespace nibble {

struct KvCacheOptions {
  DType dtype = DType::kBf16;  // F32, BF16 or F8_E4M3
  int64_t block_size = 32;     // tokens
  int64_t num_blocks = 0;      // > 0
  bool with_mtp = true;        // a further layer for the MTP layer, where the model has one
};

// Move-only. Block b of every layer belongs to the same sequence: whoever hands out blocks hands
// out one index for all layers.
class KvCache {
 public:
  // Errors: kInvalidArgument for another dtype or sizes below 1; kOutOfMemory.
  static Result<KvCache> create(const ModelConfig& config, const KvCacheOptions& options,
                                Device& device);

  // One view a layer; the MTP layer's is last.
  std::span<const KvCacheView> layers() const { return layers_; }
  uint64_t bytes() const { return buffer_.size(); }

  // (kv_lora_rank + qk_rope_head_dim) * size of dtype * layers.
  static uint64_t bytes_per_token(const ModelConfig& config, DType dtype, bool with_mtp);

 private:
  KvCache() = default;
  Buffer buffer_;
  std::vector<KvCacheView> layers_;
};

// "f32", "bf16" or "fp8" -> the cache's type. Errors: kInvalidArgument naming the three.
Result<DType> parse_kv_cache_dtype(std::string_view name);

}  // namespace nibble
