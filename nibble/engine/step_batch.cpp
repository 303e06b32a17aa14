#include "nibble/engine/step_batch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "nibble/base/check.h"
#include "nibble/model/forward.h"

namespace nibble {
namespace {

constexpr int64_t kLogitRows = 64;  // of one pass of the head; a window has at most 9

}  // namespace

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

Result<StepRunner> StepRunner::create(LoadedModel& model, int64_t max_rows) {
  Device& device = model.kernels->device();
  StepRunner runner(model, NIBBLE_TRY(Workspace::create(model.config, *model.kernels, max_rows)));
  const auto bytes = [](int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * cols) * sizeof(float);
  };
  runner.hidden_ =
      NIBBLE_TRY(device.allocate_host_visible(bytes(max_rows, model.config.hidden_size)));
  runner.gathered_ =
      NIBBLE_TRY(device.allocate_host_visible(bytes(kLogitRows, model.config.hidden_size)));
  runner.logits_ =
      NIBBLE_TRY(device.allocate_host_visible(bytes(kLogitRows, model.config.vocab_size)));
  return runner;
}

StepBatch StepRunner::run(std::span<const ScheduledRun> runs, const KvCache& cache) {
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
  const int64_t hidden_size = model_->config.hidden_size;
  step.hidden =
      MatrixView{hidden_.data(), DType::kF32, builder.num_tokens(), hidden_size, hidden_size};
  forward(model_->config, model_->weights, builder.batch(), cache.layers(), *model_->kernels,
          workspace_, step.hidden);
  finish();
  return step;
}

// Nothing can go on without its device, so that an error here is thrown, not returned.
void StepRunner::finish() {
  const Status status = model_->kernels->device().synchronize();
  if (!status) throw std::runtime_error(status.error().message);
}

void StepRunner::logits(const MatrixView& hidden, std::span<const RowRange> rows,
                        const std::function<void(size_t, const MatrixView&)>& sink) {
  const int64_t vocab = model_->config.vocab_size;
  finish();  // the hidden states are read here
  for (size_t begin = 0; begin < rows.size();) {
    // As many whole ranges as one pass takes.
    int64_t count = 0;
    size_t end = begin;
    while (end < rows.size() && count + rows[end].count <= kLogitRows) count += rows[end++].count;
    NIBBLE_CHECK(end > begin);
    const MatrixView gathered{gathered_.data(), DType::kF32, count, hidden.cols, hidden.cols};
    int64_t at = 0;
    for (size_t i = begin; i < end; ++i) {
      for (int64_t r = 0; r < rows[i].count; ++r, ++at) {
        std::memcpy(gathered.row<float>(at), hidden.row<float>(rows[i].first + r),
                    static_cast<size_t>(hidden.cols) * sizeof(float));
      }
    }
    const MatrixView all{logits_.data(), DType::kF32, count, vocab, vocab};
    model_->kernels->linear(gathered, model_->weights.lm_head, all);
    finish();
    at = 0;
    for (size_t i = begin; i < end; ++i) {
      sink(i, all.slice_rows(at, rows[i].count));
      at += rows[i].count;
    }
    begin = end;
  }
}

}  // namespace nibble
