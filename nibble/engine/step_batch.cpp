#include "nibble/engine/step_batch.h"

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble {
void BatchBuilder::add_segment(int64_t first_row, int64_t count, int64_t first_position,
                               MlaForm form, std::span<const int32_t> block_table,
                               int64_t slot_offset) {
  if (count <= 0) return;
  AttentionSegment segment;
  segment.first_token = first_row;
  segment.num_tokens = count;
  segment.first_position = first_position;
  segment.block_table = block_table.data();
  segment.form = form;
  segment.slot_offset = slot_offset;
  segments_.push_back(segment);
}

void BatchBuilder::add(std::span<const int32_t> tokens, int64_t first_position, int64_t boundary,
                       std::span<const int32_t> block_table, int64_t slot_offset) {
  const int64_t row = num_tokens();
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t expanded = std::clamp<int64_t>(boundary - first_position, 0, count);
  add_segment(row, expanded, first_position, MlaForm::kExpanded, block_table, slot_offset);
  add_segment(row + expanded, count - expanded, first_position + expanded, MlaForm::kAbsorbed,
              block_table, slot_offset);
  token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
}

Batch BatchBuilder::batch() const { return {token_ids_, AttentionBatch{num_tokens(), segments_}}; }

Result<StepBatch> run_step(std::span<const ScheduledRun> runs, ModelPasses& passes) {
  StepBatch step;
  BatchBuilder builder;
  std::vector<int32_t> tokens;
  for (const ScheduledRun& run : runs) {
    const Sequence& sequence = *run.sequence;
    step.runs.push_back({run, builder.num_tokens(), sequence.num_computed});
    tokens.assign(sequence.token_ids.begin() + sequence.num_computed, sequence.token_ids.end());
    const std::vector<int32_t>& drafts = sequence.drafts.token_ids;
    tokens.insert(tokens.end(), drafts.begin(), drafts.end());
    NIBBLE_CHECK(run.num_tokens <= static_cast<int64_t>(tokens.size()));
    builder.add(std::span(tokens).first(static_cast<size_t>(run.num_tokens)), sequence.num_computed,
                sequence.prompt_size, sequence.block_table, 0);
  }
  NIBBLE_TRY(passes.forward(builder.batch()));
  return step;
}

}  // namespace nibble
