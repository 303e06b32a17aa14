#include "nibble/engine/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"

namespace nibble {
namespace {

constexpr int64_t kBlockSize = 32;
constexpr int64_t kLogitRows = 64;  // of one lm_head call, which bounds the logits' memory

}  // namespace

Result<Session> Session::create(LoadedModel& model, const SessionOptions& options) {
  const int64_t max_tokens = options.max_tokens > 0 ? options.max_tokens : model.max_seq_len;
  if (max_tokens > model.max_seq_len) {
    return invalid_argument(fmt::format("{} tokens are more than the model's context of {}",
                                        max_tokens, model.max_seq_len));
  }
  if (options.chunk_size < 1) {
    return invalid_argument(
        fmt::format("chunk_size is {}, expected 1 or more", options.chunk_size));
  }
  if (options.with_mtp && !model.weights.mtp) {
    return invalid_argument("the checkpoint has no MTP layer, or it was not loaded");
  }
  const int64_t num_blocks = (max_tokens + kBlockSize - 1) / kBlockSize;
  Device& device = model.kernels->device();
  const int64_t chunk_size = std::min(options.chunk_size, max_tokens);
  KvCacheOptions cache_options;
  cache_options.dtype = options.kv_cache_dtype;
  cache_options.block_size = kBlockSize;
  cache_options.num_blocks = num_blocks;
  cache_options.with_mtp = options.with_mtp;
  Session session(model, NIBBLE_TRY(KvCache::create(model.config, cache_options, device)),
                  NIBBLE_TRY(Workspace::create(model.config, *model.kernels, chunk_size)));
  session.chunk_size_ = chunk_size;
  session.max_tokens_ = max_tokens;
  session.with_mtp_ = options.with_mtp;
  session.block_table_.resize(static_cast<size_t>(num_blocks));
  std::iota(session.block_table_.begin(), session.block_table_.end(), 0);
  session.last_logits_.resize(static_cast<size_t>(model.config.vocab_size));
  session.hidden_rows_ = NIBBLE_TRY(device.allocate_host_visible(
      static_cast<size_t>(chunk_size * model.config.hidden_size) * sizeof(float)));
  session.logits_ = NIBBLE_TRY(device.allocate_host_visible(
      static_cast<size_t>(kLogitRows * model.config.vocab_size) * sizeof(float)));
  return session;
}

Status Session::append(std::span<const int32_t> token_ids, MlaForm form,
                       const LogitsSink& all_logits, const HiddenObserver& observer) {
  if (token_ids.empty()) return invalid_argument("there are no tokens to run");
  const auto count = static_cast<int64_t>(token_ids.size());
  const auto before = static_cast<int64_t>(token_ids_.size());
  if (before + count > max_tokens_) {
    return invalid_argument(
        fmt::format("{} tokens exceed the context of {} tokens", before + count, max_tokens_));
  }
  for (size_t i = 0; i < token_ids.size(); ++i) {
    if (token_ids[i] < 0 || token_ids[i] >= model_->config.vocab_size) {
      return invalid_argument(fmt::format("token {} is {}, outside the vocabulary of {}", i,
                                          token_ids[i], model_->config.vocab_size));
    }
  }
  for (int64_t first = 0; first < count; first += chunk_size_) {
    NIBBLE_TRY(check_interrupt());
    const int64_t rows = std::min(chunk_size_, count - first);
    NIBBLE_TRY(
        append_chunk(token_ids.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)), form,
                     first, first + rows == count, all_logits, observer));
  }
  return {};
}

Status Session::append_chunk(std::span<const int32_t> token_ids, MlaForm form, int64_t first,
                             bool want_last, const LogitsSink& all_logits,
                             const HiddenObserver& observer) {
  const auto rows = static_cast<int64_t>(token_ids.size());
  const auto position = static_cast<int64_t>(token_ids_.size());
  const AttentionSegment segment{0, rows, position, block_table_.data(), form};
  const Batch batch{token_ids, AttentionBatch{rows, std::span(&segment, 1)}};
  const MatrixView hidden = hidden_view(rows);
  NIBBLE_TRY(forward(model_->config, model_->weights, batch, cache_.layers(), *model_->kernels,
                     workspace_, hidden, observer));
  NIBBLE_TRY(model_->kernels->device().synchronize());
  token_ids_.insert(token_ids_.end(), token_ids.begin(), token_ids.end());
  if (with_mtp_) {
    for (int64_t t = 0; t < rows; ++t) {
      hidden_.insert(hidden_.end(), hidden.row<float>(t), hidden.row<float>(t) + hidden.cols);
    }
  }
  const auto keep_last = [&](int64_t, const MatrixView& logits) {
    std::memcpy(last_logits_.data(), logits.row<float>(logits.rows - 1),
                last_logits_.size() * sizeof(float));
  };
  if (all_logits) {
    NIBBLE_TRY(run_head(hidden, first, [&](int64_t at, const MatrixView& logits) {
      all_logits(at, logits);
      keep_last(at, logits);
    }));
  } else if (want_last) {
    NIBBLE_TRY(run_head(hidden.slice_rows(rows - 1, 1), first + rows - 1, keep_last));
  }
  return {};
}

MatrixView Session::hidden_view(int64_t rows) const {
  const int64_t cols = model_->config.hidden_size;
  return MatrixView{hidden_rows_.data(), DType::kF32, rows, cols, cols};
}

Status Session::run_head(const MatrixView& hidden, int64_t first, const LogitsSink& sink) {
  const int64_t vocab = model_->config.vocab_size;
  for (int64_t at = 0; at < hidden.rows; at += kLogitRows) {
    const int64_t rows = std::min(kLogitRows, hidden.rows - at);
    const MatrixView logits{logits_.data(), DType::kF32, rows, vocab, vocab};
    model_->kernels->linear(hidden.slice_rows(at, rows), model_->weights.lm_head, logits);
    NIBBLE_TRY(model_->kernels->device().synchronize());
    sink(first + at, logits);
  }
  return {};
}

Status Session::mtp_logits(const LogitsSink& sink) {
  if (!with_mtp_) return invalid_argument("the session was made without the MTP layer");
  const auto pairs = static_cast<int64_t>(token_ids_.size()) - 1;
  const int64_t hidden_size = model_->config.hidden_size;
  for (int64_t first = 0; first < pairs; first += chunk_size_) {
    const int64_t rows = std::min(chunk_size_, pairs - first);
    const AttentionSegment segment{0, rows, first, block_table_.data(), MlaForm::kExpanded};
    const Batch batch{
        std::span(token_ids_).subspan(static_cast<size_t>(first) + 1, static_cast<size_t>(rows)),
        AttentionBatch{rows, std::span(&segment, 1)}};
    const MatrixView hidden = hidden_view(rows);
    std::memcpy(hidden.data, hidden_.data() + first * hidden_size,
                static_cast<size_t>(rows * hidden_size) * sizeof(float));
    NIBBLE_TRY(forward_mtp(model_->config, model_->weights, batch, hidden, cache_.layers().back(),
                           *model_->kernels, workspace_, hidden));
    NIBBLE_TRY(run_head(hidden, first, sink));
  }
  return {};
}

}  // namespace nibble
