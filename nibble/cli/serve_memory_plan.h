// What nibble serve would take of a machine's memory, without loading the model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "nibble/base/result.h"
#include "nibble/cli/serve_options.h"

namespace nibble {

// Bytes, of one device: of the whole host where ranks are threads in its memory.
struct ServeMemoryPlan {
  std::string device;
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
  uint64_t weight_bytes = 0;
  uint64_t kv_cache_bytes = 0;
  int64_t kv_cache_tokens = 0;
  int64_t max_seq_len = 0;  // as it would be lowered to the cache
  Status outcome;           // why it does not fit
};

// Reads the checkpoint's headers; weights are counted as stored, so packed ones may be less. The
// cache is that of the engine: a share of what is free beside the weights, or kv_cache_max_tokens.
// `outcome` is kInvalidArgument for a split that the checkpoint does not allow, kOutOfMemory for
// what does not fit. Errors: those of the readers and of make_kernels.
Result<ServeMemoryPlan> plan_serve_memory(const std::filesystem::path& directory,
                                          const ServeOptions& options);

}  // namespace nibble
