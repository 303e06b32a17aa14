// A schedule as one forward pass, and its logits.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/scheduler.h"
#include "nibble/model/batch.h"
#include "nibble/model/workspace.h"

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
  MatrixView hidden;  // [rows, hidden_size], after the final norm
};

// Runs the model over a step's tokens.
class StepRunner {
 public:
  // Errors: kOutOfMemory.
  static Result<StepRunner> create(LoadedModel& model, int64_t max_rows);

  // All layers; the hidden states stay valid until the next call.
  StepBatch run(std::span<const ScheduledRun> runs, const KvCache& cache);

  // Calls sink(i, logits [rows, vocab_size]) for each i in turn: the head over rows[i] of `hidden`.
  struct RowRange {
    int64_t first = 0;
    int64_t count = 0;
  };
  void logits(const MatrixView& hidden, std::span<const RowRange> rows,
              const std::function<void(size_t, const MatrixView&)>& sink);

  Workspace& workspace() { return workspace_; }

 private:
  void finish();  // waits for the device

  StepRunner(LoadedModel& model, Workspace workspace)
      : model_(&model), workspace_(std::move(workspace)) {}

  LoadedModel* model_;
  Workspace workspace_;
  // Memory that the host sees, too.
  Buffer hidden_;    // [max_rows, hidden_size]
  Buffer gathered_;  // [kLogitRows, hidden_size]
  Buffer logits_;    // [kLogitRows, vocab_size]
};

}  // namespace nibble
