// Draft tokens from the MTP layer.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/engine/model_passes.h"
#include "nibble/engine/step_batch.h"
#include "nibble/engine/step_sampler.h"

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
  // `passes` has the MTP layer and must outlive this. block_size in tokens.
  DraftModel(ModelPasses& passes, int64_t block_size) : passes_(passes), block_size_(block_size) {}

  // Keeps the hidden states of the tokens that end blocks. Call when the runs' accepted tokens are
  // known (num_computed), before blocks are published.
  void keep_hidden(const StepBatch& step);

  // Computes all missing pairs of the step's sequences, then makes sequence.num_draft_steps drafts
  // for each into sequence.drafts, fewer where a grammar ends; with `draw` as
  // SequenceSampler::propose(). Finished sequences are left out by the caller. Errors: those of
  // ModelPasses::forward_mtp(); then no sequence of the step can go on.
  [[nodiscard]] Status draft(std::span<const StepBatch::Run> alive, StepSampler& sampler,
                             bool draw);

 private:
  HiddenRow previous(const StepBatch::Run& run, int64_t pair) const;

  ModelPasses& passes_;
  int64_t block_size_;
};

}  // namespace nibble
