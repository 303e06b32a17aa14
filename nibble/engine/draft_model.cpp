#include "nibble/engine/draft_model.h"

#include <utility>
#include <vector>

#include "nibble/base/check.h"

namespace nibble {

void DraftModel::keep_hidden(const StepBatch& step) {
  std::vector<KeptRow> kept;
  for (const StepBatch::Run& run : step.runs) {
    const Sequence& sequence = *run.scheduled.sequence;
    for (int64_t position = run.first_position; position < sequence.num_computed; ++position) {
      if ((position + 1) % block_size_ != 0) continue;
      kept.push_back({run.first_row + position - run.first_position,
                      sequence.block_table[static_cast<size_t>(position / block_size_)]});
    }
  }
  if (!kept.empty()) passes_.keep_hidden(kept);
}

// g_t for t = pair: a row of this step, or what is kept with the block that ends in t.
HiddenRow DraftModel::previous(const StepBatch::Run& run, int64_t pair) const {
  if (pair >= run.first_position) {
    return {HiddenRow::From::kStep, run.first_row + pair - run.first_position};
  }
  NIBBLE_CHECK(pair + 1 == run.first_position && (pair + 1) % block_size_ == 0);
  const auto& table = run.scheduled.sequence->block_table;
  return {HiddenRow::From::kBlock, table[static_cast<size_t>(pair / block_size_)]};
}

Status DraftModel::draft(std::span<const StepBatch::Run> alive, StepSampler& sampler, bool draw) {
  // Pass 1: every pair that has become certain.
  BatchBuilder builder;
  std::vector<HiddenRow> hidden;
  std::vector<StepSampler::Window> drafting;  // each with the row that its next draft comes from
  for (const StepBatch::Run& run : alive) {
    Sequence& sequence = *run.scheduled.sequence;
    sequence.drafts.clear();
    const int64_t first = sequence.num_mtp;
    const int64_t count = sequence.num_computed - first;
    NIBBLE_CHECK(count >= 1 && sequence.num_computed < sequence.size());
    for (int64_t i = 0; i < count; ++i) hidden.push_back(previous(run, first + i));
    builder.add(std::span<const int32_t>(sequence.token_ids)
                    .subspan(static_cast<size_t>(first) + 1, static_cast<size_t>(count)),
                first, sequence.prompt_size - 1, sequence.block_table, 1);
    sequence.num_mtp = sequence.num_computed;
    if (sequence.num_draft_steps > 0)
      drafting.push_back({&sequence, {builder.num_tokens() - 1, 1}});
  }
  if (builder.num_tokens() == 0) return {};
  NIBBLE_TRY(passes_.forward_mtp(builder.batch(), hidden));

  // Draft k of each sequence from the hidden state of its pass k, then the next pass over those
  // that want more.
  for (int64_t k = 1; !drafting.empty(); ++k) {
    sampler.propose(drafting, draw, [&](size_t i, bool has_draft) {
      if (!has_draft) drafting[i].sequence->num_draft_steps = k - 1;
    });
    BatchBuilder next;
    std::vector<StepSampler::Window> still_drafting;
    hidden.clear();
    for (const StepSampler::Window& window : drafting) {
      Sequence& sequence = *window.sequence;
      if (k >= sequence.num_draft_steps) continue;
      hidden.push_back({HiddenRow::From::kMtp, window.rows.first});
      next.add(std::span<const int32_t>(sequence.drafts.token_ids).last(1),
               sequence.num_computed - 1 + k, 0, sequence.block_table, 1);
      still_drafting.push_back({&sequence, {next.num_tokens() - 1, 1}});
    }
    drafting = std::move(still_drafting);
    if (drafting.empty()) return {};
    NIBBLE_TRY(passes_.forward_mtp(next.batch(), hidden));
  }
  return {};
}

}  // namespace nibble
