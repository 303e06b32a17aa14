// What LocalPasses do before the first request: passes over made-up batches, and recording ahead of
// time.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "nibble/engine/local_passes.h"
#include "nibble/engine/step_batch.h"

namespace nibble {

Status LocalPasses::warm_up(int64_t max_generated, int64_t max_seq_len) {
  if (max_seq_len < 3) return {};
  Device& device = model_->kernels->device();
  const KvCacheView& view = cache_.layers().front();
  // What is in fresh memory may be no number, and the way of a token through the experts must be
  // one.
  const std::vector<std::byte> zeros(
      static_cast<size_t>(view.block_size * view.entry_size * dtype_size(view.dtype)));
  for (const KvCacheView& layer : cache_.layers()) {
    NIBBLE_TRY(device.copy_to_device(layer.data, zeros));
  }
  // All blocks of a context are block 0.
  const std::vector<int32_t> table(static_cast<size_t>(max_seq_len / view.block_size + 2));
  const std::vector<int32_t> token(1);
  const auto run = [&](const BatchBuilder& builder) -> Status {
    Batch batch = builder.batch();
    const std::vector<int64_t> of_ranks(static_cast<size_t>(model_->weights.shard.tp_size),
                                        batch.num_tokens());
    if (model_->weights.shard.enable_attention_dp) {
      batch.tokens_of_ranks = of_ranks;
      batch.is_recorded = true;  // tokens of all ranks in every MoE layer: the most there can be
    }
    std::vector<HiddenRow> rows(static_cast<size_t>(batch.num_tokens()));
    for (size_t i = 0; i < rows.size(); ++i) rows[i].index = static_cast<int64_t>(i);
    NIBBLE_TRY(forward(batch));
    if (previous_.size() > 0) NIBBLE_TRY(forward_mtp(batch, rows));
    std::vector<int64_t> head_rows;
    for (int64_t i = 0; i < std::min(batch.num_tokens(), kLogitRows); ++i) head_rows.push_back(i);
    (void)head(HiddenRow::From::kStep, head_rows);
    return device.synchronize();
  };

  const int64_t rows = std::min(max_rows_, max_seq_len - 1);
  BatchBuilder prompt;
  prompt.add(std::vector<int32_t>(static_cast<size_t>(rows)), 0, max_seq_len, table, 0);
  NIBBLE_TRY(run(prompt));
  // Further back in a context nothing grows but the time.
  const int64_t position = std::min<int64_t>(max_seq_len - 2, 8192);
  // The number at which operations for few tokens take most, and all.
  for (const int64_t count : {std::min<int64_t>(max_generated, 127), max_generated}) {
    BatchBuilder generated;
    for (int64_t i = 0; i < count; ++i) generated.add(token, position, 0, table, 0);
    NIBBLE_TRY(run(generated));
  }
  return {};
}

Status LocalPasses::record_all() {
  if (!graphs_) return {};
  const std::vector<int32_t> table(2);
  const std::vector<int32_t> token(1);
  for (const int64_t size : options_.graph_sizes) {
    set_recorded_rows(size);
    BatchBuilder main;
    BatchBuilder mtp;
    for (int64_t i = 0; i < size; ++i) {
      main.add(token, 0, 0, table, 0);
      mtp.add(token, 0, 0, table, 1);
    }
    const std::vector<HiddenRow> previous(static_cast<size_t>(size));
    for (int run = 0; run <= StepGraphs::kRunsBeforeRecording; ++run) {
      NIBBLE_TRY(forward(main.batch()));
      if (previous_.size() > 0) NIBBLE_TRY(forward_mtp(mtp.batch(), previous));
      NIBBLE_TRY(model_->kernels->device().synchronize());
    }
  }
  set_recorded_rows(0);
  return {};
}

}  // namespace nibble
