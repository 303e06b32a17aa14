// What an engine needs of each rank before its first pass: cache, buffers, recorded sizes.
#pragma once

#include <cstdint>
#include <memory>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/local_passes.h"

namespace nibble {

struct PassPlan {
  KvCacheOptions cache;        // num_blocks 0: from the fraction below
  double cache_fraction = 0;   // of the memory that is free when everything else has its room
  int64_t max_rows = 0;        // of the largest pass
  int64_t max_generated = 0;   // generated tokens of the largest step
  int64_t max_batch_size = 0;  // no more blocks are taken than so many full contexts need
  PassOptions options;
  bool record_all = false;  // every size of options.graph_sizes at once
};

struct SetUpPasses {
  std::unique_ptr<LocalPasses> passes;
  int64_t num_blocks = 0;  // of every rank's cache: the least of what they have room for
};

// With a model on several ranks all call it together, with the same plan. A failure of one is told
// to the others. Errors: kOutOfMemory, those of KvCache::create, kUnavailable of a lost rank.
Result<SetUpPasses> set_up_passes(LoadedModel& model, const PassPlan& plan);

}  // namespace nibble
