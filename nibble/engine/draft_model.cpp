#include "nibble/engine/draft_model.h"

#include <algorithm>
#include <cstring>

#include "nibble/base/check.h"
#include "nibble/model/forward.h"

namespace nibble {
Result<DraftModel> DraftModel::create(LoadedModel& model, int64_t num_blocks, int64_t block_size,
                                      int64_t max_rows) {
  NIBBLE_CHECK(model.weights.mtp.has_value());
  Device& device = model.kernels->device();
  const auto row_bytes = static_cast<size_t>(model.config.hidden_size) * sizeof(float);
  DraftModel drafter(model);
  drafter.block_size_ = block_size;
  drafter.block_hidden_ =
      NIBBLE_TRY(device.allocate_host_visible(static_cast<size_t>(num_blocks) * row_bytes));
  drafter.previous_ =
      NIBBLE_TRY(device.allocate_host_visible(static_cast<size_t>(max_rows) * row_bytes));
  drafter.hidden_ =
      NIBBLE_TRY(device.allocate_host_visible(static_cast<size_t>(max_rows) * row_bytes));
  return drafter;
}

void DraftModel::keep_hidden(const StepBatch& step) {
  const int64_t hidden_size = model_->config.hidden_size;
  for (const StepBatch::Run& run : step.runs) {
    const Sequence& sequence = *run.scheduled.sequence;
    for (int64_t position = run.first_position; position < sequence.num_computed; ++position) {
      if ((position + 1) % block_size_ != 0) continue;
      const int32_t block = sequence.block_table[static_cast<size_t>(position / block_size_)];
      std::memcpy(block_hidden_.as<float>() + block * hidden_size,
                  step.hidden.row<float>(run.first_row + position - run.first_position),
                  static_cast<size_t>(hidden_size) * sizeof(float));
    }
  }
}

// g_t for t = pair: a row of this step, or what is kept with the block that ends in t.
void DraftModel::copy_previous(const StepBatch::Run& run, const MatrixView& hidden, int64_t pair,
                               float* out) const {
  const int64_t hidden_size = model_->config.hidden_size;
  const float* source = nullptr;
  if (pair >= run.first_position) {
    source = hidden.row<float>(run.first_row + pair - run.first_position);
  } else {
    NIBBLE_CHECK(pair + 1 == run.first_position && (pair + 1) % block_size_ == 0);
    const auto& table = run.scheduled.sequence->block_table;
    source =
        block_hidden_.as<float>() + table[static_cast<size_t>(pair / block_size_)] * hidden_size;
  }
  std::memcpy(out, source, static_cast<size_t>(hidden_size) * sizeof(float));
}

void DraftModel::draft(const StepBatch& step, std::span<const StepBatch::Run> alive,
                       const KvCache& cache, StepRunner& runner, const Choice& choice) {
  const int64_t hidden_size = model_->config.hidden_size;
  const auto view = [&](const Buffer& buffer, int64_t rows) {
    return MatrixView{buffer.data(), DType::kF32, rows, hidden_size, hidden_size};
  };

  // Pass 1: every pair that has become certain.
  BatchBuilder builder;
  std::vector<Sequence*> drafting;
  std::vector<StepRunner::RowRange> last_rows;
  for (const StepBatch::Run& run : alive) {
    Sequence& sequence = *run.scheduled.sequence;
    sequence.drafts.clear();
    const int64_t first = sequence.num_mtp;
    const int64_t count = sequence.num_computed - first;
    NIBBLE_CHECK(count >= 1 && sequence.num_computed < sequence.size());
    for (int64_t i = 0; i < count; ++i) {
      copy_previous(run, step.hidden, first + i,
                    previous_.as<float>() + (builder.num_tokens() + i) * hidden_size);
    }
    builder.add(std::span<const int32_t>(sequence.token_ids)
                    .subspan(static_cast<size_t>(first) + 1, static_cast<size_t>(count)),
                first, sequence.prompt_size - 1, sequence.block_table, 1);
    sequence.num_mtp = sequence.num_computed;
    if (sequence.num_draft_steps > 0) {
      drafting.push_back(&sequence);
      last_rows.push_back({builder.num_tokens() - 1, 1});
    }
  }
  if (builder.num_tokens() == 0) return;
  const KvCacheView& mtp_cache = cache.layers().back();
  MatrixView hidden = view(hidden_, builder.num_tokens());
  forward_mtp(model_->config, model_->weights, builder.batch(),
              view(previous_, builder.num_tokens()), mtp_cache, *model_->kernels,
              runner.workspace(), hidden);

  // Draft k of each sequence from the hidden state of its pass k, then the next pass over those
  // that want more.
  for (int64_t k = 1; !drafting.empty(); ++k) {
    runner.logits(hidden, last_rows, [&](size_t i, const MatrixView& logits) {
      Sequence& sequence = *drafting[i];
      const std::span<float> row(logits.row<float>(0), static_cast<size_t>(logits.cols));
      if (!sequence.sampler.propose(row, choice.draw, *choice.sampler, sequence.drafts)) {
        sequence.num_draft_steps = k - 1;
      }
    });
    BatchBuilder next;
    std::vector<Sequence*> still_drafting;
    for (size_t i = 0; i < drafting.size(); ++i) {
      Sequence& sequence = *drafting[i];
      if (k >= sequence.num_draft_steps) continue;
      std::memcpy(previous_.as<float>() + next.num_tokens() * hidden_size,
                  hidden.row<float>(last_rows[i].first),
                  static_cast<size_t>(hidden_size) * sizeof(float));
      next.add(std::span<const int32_t>(sequence.drafts.token_ids).last(1),
               sequence.num_computed - 1 + k, 0, sequence.block_table, 1);
      still_drafting.push_back(&sequence);
    }
    drafting = std::move(still_drafting);
    last_rows.clear();
    if (drafting.empty()) return;
    for (size_t i = 0; i < drafting.size(); ++i) {
      last_rows.push_back({static_cast<int64_t>(i), 1});
    }
    hidden = view(hidden_, next.num_tokens());
    forward_mtp(model_->config, model_->weights, next.batch(), view(previous_, next.num_tokens()),
                mtp_cache, *model_->kernels, runner.workspace(), hidden);
  }
}

}  // namespace nibble
