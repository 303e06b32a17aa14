// A schedule as one forward pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/engine/model_passes.h"
#include "nibble/engine/scheduler.h"
#include "nibble/model/batch.h"

namespace nibble {

// Tokens of sequences, in segments, as the model takes them. Rows are in the order of adding.
class BatchBuilder {
 public:
  // `tokens` of a sequence at positions first_position and up; those below `boundary` are computed
  // in the expanded form, the others in the absorbed one. The block table must outlive the batch.
  void add(std::span<const int32_t> tokens, int64_t first_position, int64_t boundary,
           std::span<const int32_t> block_table, int64_t slot_offset);

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  // Views into this builder.
  Batch batch() const;

 private:
  void add_segment(int64_t first_row, int64_t count, int64_t first_position, MlaForm form,
                   std::span<const int32_t> block_table, int64_t slot_offset);

  std::vector<int32_t> token_ids_;
  std::vector<AttentionSegment> segments_;
};

// The runs of a step with the rows that each one has in the forward pass.
struct StepBatch {
  struct Run {
    ScheduledRun scheduled;
    int64_t first_row = 0;
    int64_t first_position = 0;
  };
  std::vector<Run> runs;
};

// Runs the model over a step's tokens. Errors: those of ModelPasses::forward().
Result<StepBatch> run_step(std::span<const ScheduledRun> runs, ModelPasses& passes);

}  // namespace nibble
