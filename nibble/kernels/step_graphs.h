// Passes over the model that are recorded once and replayed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "nibble/kernels/attention_view.h"

namespace nibble {

struct StepGraphStats {
  int64_t num_graphs = 0;    // recorded and valid
  int64_t num_recorded = 0;  // ever
  int64_t num_replayed = 0;
  uint64_t device_bytes = 0;  // that recording took, about
  double device_seconds = 0;  // of the device, in what was replayed and has ended
};

// Belongs to whoever owns the buffers that the recorded work uses: all of it has to stay in place
// from call to call. Not thread-safe.
class StepGraphs {
 public:
  virtual ~StepGraphs() = default;

  // The same as work(), which launches operations on the batch (through `token_ids` and
  // `attention`, which may differ from call to call) and on nothing else that changes. What is
  // launched may depend on `kind` and on the number of tokens alone. The first calls of a kind and
  // number run as they are, one is recorded, later ones are replayed.
  //
  //   cache  any layer's: for its block and entry size
  virtual void run(int kind, std::span<const int32_t> token_ids, const AttentionBatch& attention,
                   const KvCacheView& cache, const std::function<void()>& work) = 0;

  // Recording takes as long as a few steps, so that a size that came once is not worth it.
  static constexpr int kRunsBeforeRecording = 4;

  virtual StepGraphStats stats() const = 0;
  virtual int64_t num_replayed() const = 0;
};

}  // namespace nibble
