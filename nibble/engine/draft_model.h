// Draft tokens from the MTP layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/step_batch.h"

namespace nibble {

// After each step the MTP layer runs over the tokens that are now certain, which fills its cache
// and gives the first draft of each decoding sequence; further drafts come from running it again on
// its own hidden state. Slots written for drafts are overwritten in the next step.
//
// The entry of the pair (hidden of t, token t + 1) lies in slot t + 1 (AttentionSegment::
// slot_offset). The first pair behind a found prefix needs the hidden state of the prefix's last
// token; it is kept with each block.
class DraftModel {
 public:
  // The model has an MTP layer. Errors: kOutOfMemory.
  static Result<DraftModel> create(LoadedModel& model, int64_t num_blocks, int64_t block_size,
                                   int64_t max_rows);

  // Keeps the hidden states of the tokens that end blocks. Call when the runs' accepted tokens are
  // known (num_computed), before blocks are published.
  void keep_hidden(const StepBatch& step);

  // How drafts are chosen: SequenceSampler::propose().
  struct Choice {
    bool draw = false;
    Sampler* sampler = nullptr;
  };

  // Computes all missing pairs of the step's sequences, then makes sequence.num_draft_steps drafts
  // for each into sequence.drafts, fewer where a grammar ends. Finished sequences are left out by
  // the caller.
  void draft(const StepBatch& step, std::span<const StepBatch::Run> alive, const KvCache& cache,
             StepRunner& runner, const Choice& choice);

 private:
  explicit DraftModel(LoadedModel& model) : model_(&model) {}

  void copy_previous(const StepBatch::Run& run, const MatrixView& hidden, int64_t pair,
                     float* out) const;

  LoadedModel* model_;
  int64_t block_size_ = 0;
  Buffer block_hidden_;  // [num_blocks, hidden_size]
  Buffer previous_;      // [max_rows, hidden_size]
  Buffer hidden_;        // [max_rows, hidden_size]
};

}  // namespace nibble
