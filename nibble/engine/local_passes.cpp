#include "nibble/engine/local_passes.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/model/forward.h"

namespace nibble {

Result<std::unique_ptr<LocalPasses>> LocalPasses::create(LoadedModel& model,
                                                         const KvCacheOptions& cache,
                                                         int64_t max_rows) {
  Device& device = model.kernels->device();
  KvCache kv_cache = NIBBLE_TRY(KvCache::create(model.config, cache, device));
  Workspace workspace = NIBBLE_TRY(Workspace::create(model.config, *model.kernels, max_rows));
  std::unique_ptr<LocalPasses> passes(
      new LocalPasses(model, std::move(kv_cache), std::move(workspace)));
  const auto bytes = [](int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * cols) * sizeof(float);
  };
  const int64_t hidden = model.config.hidden_size;
  passes->hidden_ = NIBBLE_TRY(device.allocate_host_visible(bytes(max_rows, hidden)));
  passes->gathered_ = NIBBLE_TRY(device.allocate_host_visible(bytes(kLogitRows, hidden)));
  passes->logits_ =
      NIBBLE_TRY(device.allocate_host_visible(bytes(kLogitRows, model.config.vocab_size)));
  if (cache.with_mtp) {
    NIBBLE_CHECK(model.weights.mtp.has_value());
    passes->previous_ = NIBBLE_TRY(device.allocate_host_visible(bytes(max_rows, hidden)));
    passes->mtp_hidden_ = NIBBLE_TRY(device.allocate_host_visible(bytes(max_rows, hidden)));
    passes->block_hidden_ =
        NIBBLE_TRY(device.allocate_host_visible(bytes(cache.num_blocks, hidden)));
  }
  return passes;
}

MatrixView LocalPasses::rows_of(const Buffer& buffer, int64_t rows) const {
  const int64_t hidden = model_->config.hidden_size;
  return {buffer.data(), DType::kF32, rows, hidden, hidden};
}

Status LocalPasses::forward(const Batch& batch) {
  Status status =
      nibble::forward(model_->config, model_->weights, batch, cache_.layers(), *model_->kernels,
                      workspace_, rows_of(hidden_, batch.num_tokens()));
  finish();
  return status;
}

const float* LocalPasses::find(const HiddenRow& row) const {
  const Buffer& buffer = row.from == HiddenRow::From::kStep  ? hidden_
                         : row.from == HiddenRow::From::kMtp ? mtp_hidden_
                                                             : block_hidden_;
  return buffer.as<const float>() + row.index * model_->config.hidden_size;
}

void LocalPasses::keep_hidden(std::span<const KeptRow> rows) {
  const auto row_bytes = static_cast<size_t>(model_->config.hidden_size) * sizeof(float);
  for (const KeptRow& kept : rows) {
    std::memcpy(block_hidden_.as<float>() + kept.block * model_->config.hidden_size,
                find({HiddenRow::From::kStep, kept.row}), row_bytes);
  }
}

Status LocalPasses::forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) {
  NIBBLE_CHECK(static_cast<int64_t>(previous.size()) == batch.num_tokens());
  const MatrixView input = rows_of(previous_, batch.num_tokens());
  finish();  // the hidden states are read here
  for (size_t i = 0; i < previous.size(); ++i) {
    std::memcpy(input.row<float>(static_cast<int64_t>(i)), find(previous[i]),
                static_cast<size_t>(input.cols) * sizeof(float));
  }
  return nibble::forward_mtp(model_->config, model_->weights, batch, input, cache_.layers().back(),
                             *model_->kernels, workspace_,
                             rows_of(mtp_hidden_, batch.num_tokens()));
}

void LocalPasses::logits(HiddenRow::From from, std::span<const RowRange> rows,
                         const LogitsSink& sink) {
  const int64_t vocab = model_->config.vocab_size;
  finish();  // the hidden states are read here
  for (size_t begin = 0; begin < rows.size();) {
    // As many whole ranges as one pass takes.
    int64_t count = 0;
    size_t end = begin;
    while (end < rows.size() && count + rows[end].count <= kLogitRows) count += rows[end++].count;
    NIBBLE_CHECK(end > begin);
    const MatrixView gathered = rows_of(gathered_, count);
    int64_t at = 0;
    for (size_t i = begin; i < end; ++i) {
      std::memcpy(gathered.row<float>(at), find({from, rows[i].first}),
                  static_cast<size_t>(rows[i].count * gathered.cols) * sizeof(float));
      at += rows[i].count;
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

// Nothing can go on without its device, so that an error here is thrown, not returned.
void LocalPasses::finish() {
  const Status status = model_->kernels->device().synchronize();
  if (!status) throw std::runtime_error(status.error().message);
}

}  // namespace nibble
