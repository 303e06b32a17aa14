// LLMOptions to what the model and the engine are made with; here is decided what is refused.
#pragma once

#include "nibble/base/result.h"
#include "nibble/engine/engine.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/options.h"

namespace nibble {

// Errors of both: kUnsupported naming an option that this build can't honour and what would work;
// kInvalidArgument naming an option, its value and its range. What the engine checks itself is left
// to it.
Result<ModelOptions> model_options(const api::LLMOptions& options);
Result<EngineOptions> engine_options(const api::LLMOptions& options);

// options.num_blocks for kv_cache_config.max_tokens: no more than these tokens, nor than the
// fraction of free memory. The model is loaded. Errors: kInvalidArgument.
Status limit_kv_tokens(const api::KvCacheConfig& config, const LoadedModel& model,
                       EngineOptions* options);

}  // namespace nibble
