#include "nibble/engine/local_passes.h"

#include <algorithm>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/log.h"
#include "nibble/engine/padded_batch.h"
#include "nibble/model/expert_store.h"
#include "nibble/model/forward.h"

namespace nibble {
namespace {

constexpr int kMainPass = 0;
constexpr int kMtpPass = 1;

// Whether passes stop at each layer to ask where its experts are: then they can't be recorded.
bool asks_for_experts(const LoadedModel& model) {
  const ExpertStore* const store = model.weights.expert_store;
  if (store == nullptr) return false;
  const auto& layers = model.weights.layers;
  const bool asks = std::any_of(layers.begin(), layers.end(), [&](const LayerWeights& layer) {
    return layer.moe && store->resident(layer.moe->layer).empty();
  });
  if (asks) log_info("steps are not recorded as CUDA graphs: experts come while they run");
  return asks;
}

}  // namespace

Result<std::unique_ptr<LocalPasses>> LocalPasses::create(LoadedModel& model,
                                                         const KvCacheOptions& cache,
                                                         int64_t max_rows,
                                                         const PassOptions& options) {
  Device& device = model.kernels->device();
  std::unique_ptr<StepGraphs> graphs;
  const Shard& shard = model.weights.shard;
  if (!options.graph_sizes.empty() && !asks_for_experts(model)) {
    graphs = model.kernels->make_step_graphs();
  }
  int64_t logit_rows = kLogitRows;
  if (graphs) {
    max_rows = std::max(max_rows, options.graph_sizes.back());
    logit_rows = std::max(logit_rows, options.graph_sizes.back());
  }
  KvCache kv_cache = NIBBLE_TRY(KvCache::create(model.config, cache, device));
  Workspace workspace =
      NIBBLE_TRY(Workspace::create(model.config, *model.kernels, max_rows, shard));
  std::unique_ptr<LocalPasses> passes(
      new LocalPasses(model, std::move(kv_cache), std::move(workspace)));
  passes->options_ = options;
  passes->max_rows_ = max_rows;
  passes->graphs_ = std::move(graphs);
  if (shard.rank == 0 || shard.enable_attention_dp) {
    passes->sampler_ = NIBBLE_TRY(model.kernels->make_sampler(model.config.vocab_size));
    if (passes->sampler_ && options.num_weight_rows > 0) {
      NIBBLE_TRY(passes->sampler_->reserve_weights(options.num_weight_rows));
    }
  }
  const auto bytes = [](int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * cols) * sizeof(float);
  };
  const int64_t hidden = model.config.hidden_size;
  const int64_t vocab = model.config.vocab_size;
  passes->hidden_ = NIBBLE_TRY(device.allocate(bytes(max_rows, hidden)));
  passes->gathered_ = NIBBLE_TRY(device.allocate(bytes(kLogitRows, hidden)));
  passes->logits_ = NIBBLE_TRY(device.allocate(bytes(logit_rows, vocab)));
  if (const Part part = shard.attention(); !part.is_whole()) {
    const int64_t all = shard.rank == 0 ? shard.tp_size - 1 : 0;
    passes->part_logits_ =
        NIBBLE_TRY(device.allocate(bytes((1 + all) * logit_rows, part.count(vocab))));
  }
  if (!device.is_host()) {
    passes->host_logits_ = NIBBLE_TRY(device.allocate_host_visible(bytes(kLogitRows, vocab)));
  }
  if (cache.with_mtp) {
    NIBBLE_CHECK(model.weights.mtp.has_value());
    passes->previous_ = NIBBLE_TRY(device.allocate(bytes(max_rows, hidden)));
    passes->mtp_hidden_ = NIBBLE_TRY(device.allocate(bytes(max_rows, hidden)));
    passes->block_hidden_ =
        NIBBLE_TRY(device.allocate_for(MemoryUse::kKvCache, bytes(cache.num_blocks, hidden)));
  }
  return passes;
}

MatrixView LocalPasses::rows_of(const Buffer& buffer, int64_t rows) const {
  const int64_t hidden = model_->config.hidden_size;
  return {buffer.data(), DType::kF32, rows, hidden, hidden};
}

// With attention data parallel what is launched depends on the other ranks' batches, too: rank 0
// says to all how many tokens they have.
int64_t LocalPasses::size_of(const Batch& batch) const {
  if (!graphs_) return 0;
  if (model_->weights.shard.enable_attention_dp) return recorded_rows_;
  return recorded_size(batch, options_.graph_sizes);
}

Batch LocalPasses::with_ranks(const PaddedBatch& padded) {
  Batch batch = padded.batch();
  const Shard& shard = model_->weights.shard;
  batch.is_recorded = true;
  if (shard.enable_attention_dp) {
    tokens_of_ranks_.assign(static_cast<size_t>(shard.tp_size), batch.num_tokens());
    batch.tokens_of_ranks = tokens_of_ranks_;
  }
  return batch;
}

// A pass over generated tokens that is recorded brings the logits of all rows along.
Status LocalPasses::forward(const Batch& batch) {
  const DeviceRange range(model_->kernels->device(), "forward");
  const auto pass = [&](const Batch& tokens) {
    return nibble::forward(model_->config, model_->weights, tokens, cache_.layers(),
                           *model_->kernels, workspace_, rows_of(hidden_, tokens.num_tokens()));
  };
  const int64_t size = size_of(batch);
  step_logits_ = size;
  if (size == 0) return heard(pass(batch));
  const PaddedBatch padded(batch, size);
  const Batch tokens = with_ranks(padded);
  const int64_t vocab = model_->config.vocab_size;
  Status status;
  graphs_->run(kMainPass, tokens.token_ids, tokens.attention, cache_.layers().front(), [&] {
    status = pass(tokens);
    if (status) run_head(rows_of(hidden_, size), {logits_.data(), DType::kF32, size, vocab, vocab});
  });
  return heard(std::move(status));
}

// Logits [rows, vocab_size] of x [rows, hidden_size]. On ranks that hold a part of the head they
// come together on rank 0, and `out` means nothing elsewhere.
void LocalPasses::run_head(const MatrixView& x, const MatrixView& out) {
  const Weights& weights = model_->weights;
  Kernels& kernels = *model_->kernels;
  const Part part = weights.shard.attention();
  if (part.is_whole()) return kernels.linear(x, weights.lm_head, out);
  const int64_t cols = part.count(model_->config.vocab_size);
  const auto of_rank = [&](int64_t r) {  // this rank's is the first
    return MatrixView{part_logits_.as<float>() + r * x.rows * cols, DType::kF32, x.rows, cols,
                      cols};
  };
  const auto bytes = static_cast<size_t>(x.rows * cols) * sizeof(float);
  kernels.linear(x, weights.lm_head, of_rank(0));
  Communicator& comm = *weights.comm;
  const auto ranks = static_cast<size_t>(comm.size());
  std::vector<Communicator::ConstBytes> sends(ranks);
  std::vector<Communicator::Bytes> receives(ranks);
  if (comm.rank() != 0) {
    sends[0] = {static_cast<const std::byte*>(of_rank(0).data), bytes};
  } else {
    for (size_t r = 1; r < ranks; ++r) {
      receives[r] = {static_cast<std::byte*>(of_rank(static_cast<int64_t>(r)).data), bytes};
    }
  }
  comm.all_to_all(sends, receives);
  if (comm.rank() != 0) return;
  for (int64_t r = 0; r < comm.size(); ++r) {
    kernels.copy_matrix(of_rank(r), out.slice_cols(r * cols, cols));
  }
}

// Nothing can go on without the other ranks, so that their failure is thrown, not returned; and so
// is this rank's, for which the others wait within a pass.
Status LocalPasses::heard(Status status) const {
  for (const Communicator* comm : {model_->weights.comm, model_->comm}) {
    if (comm == nullptr) continue;
    const Status ranks = comm->status();
    if (!ranks) throw PassFailure(ranks.error());
    if (!status && comm->size() > 1) throw PassFailure(status.error());
  }
  return status;
}

float* LocalPasses::find(const HiddenRow& row) const {
  const Buffer& buffer = row.from == HiddenRow::From::kStep  ? hidden_
                         : row.from == HiddenRow::From::kMtp ? mtp_hidden_
                                                             : block_hidden_;
  return buffer.as<float>() + row.index * model_->config.hidden_size;
}

void LocalPasses::keep_hidden(std::span<const KeptRow> rows) {
  std::vector<RowCopy> copies;
  for (const KeptRow& kept : rows) {
    copies.push_back(
        {find({HiddenRow::From::kStep, kept.row}), find({HiddenRow::From::kBlock, kept.block})});
  }
  model_->kernels->copy_rows(copies, model_->config.hidden_size);
}

Status LocalPasses::forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) {
  const DeviceRange range(model_->kernels->device(), "MTP layer");
  NIBBLE_CHECK(static_cast<int64_t>(previous.size()) == batch.num_tokens());
  const int64_t size = size_of(batch);
  const int64_t rows = std::max(size, batch.num_tokens());
  const MatrixView input = rows_of(previous_, rows);
  std::vector<RowCopy> copies;
  for (int64_t i = 0; i < rows; ++i) {  // what is filled up repeats the last row
    const size_t at = std::min(static_cast<size_t>(i), previous.size() - 1);
    copies.push_back({find(previous[at]), input.row<float>(i)});
  }
  model_->kernels->copy_rows(copies, model_->config.hidden_size);
  const auto pass = [&](const Batch& tokens) {
    return nibble::forward_mtp(model_->config, model_->weights, tokens, input,
                               cache_.layers().back(), *model_->kernels, workspace_,
                               rows_of(mtp_hidden_, rows));
  };
  if (size == 0) return heard(pass(batch));
  const PaddedBatch padded(batch, size);
  const Batch tokens = with_ranks(padded);
  Status status;
  graphs_->run(kMtpPass, tokens.token_ids, tokens.attention, cache_.layers().back(),
               [&] { status = pass(tokens); });
  return heard(std::move(status));
}

// The head over rows of the last pass of that kind, in memory of the device.
MatrixView LocalPasses::head(HiddenRow::From from, std::span<const int64_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  NIBBLE_CHECK(count >= 1 && count <= kLogitRows);
  const MatrixView gathered = rows_of(gathered_, count);
  std::vector<RowCopy> copies;
  for (int64_t i = 0; i < count; ++i) {
    copies.push_back({find({from, rows[static_cast<size_t>(i)]}), gathered.row<float>(i)});
  }
  model_->kernels->copy_rows(copies, gathered.cols);
  const int64_t vocab = model_->config.vocab_size;
  const MatrixView logits{logits_.data(), DType::kF32, count, vocab, vocab};
  run_head(gathered, logits);
  step_logits_ = 0;  // overwritten
  return logits;
}

void LocalPasses::logits(HiddenRow::From from, std::span<const RowRange> rows,
                         const LogitsSink& sink) {
  Device& device = model_->kernels->device();
  for (size_t begin = 0; begin < rows.size();) {
    // As many whole ranges as one pass takes.
    std::vector<int64_t> part;
    size_t end = begin;
    while (end < rows.size() && static_cast<int64_t>(part.size()) + rows[end].count <= kLogitRows) {
      for (int64_t r = 0; r < rows[end].count; ++r) part.push_back(rows[end].first + r);
      ++end;
    }
    NIBBLE_CHECK(end > begin);
    MatrixView all = head(from, part);
    if (!has_logits()) {
      finish();
      begin = end;
      continue;
    }
    if (host_logits_.size() > 0) {
      const size_t bytes = static_cast<size_t>(all.rows * all.cols) * sizeof(float);
      const Status copied = device.copy_to_host({host_logits_.as<std::byte>(), bytes}, all.data);
      if (!copied) throw PassFailure(copied.error());
      all.data = host_logits_.data();
    }
    finish();
    int64_t at = 0;
    for (size_t i = begin; i < end; ++i) {
      sink(i, all.slice_rows(at, rows[i].count));
      at += rows[i].count;
    }
    begin = end;
  }
}

std::vector<int64_t> LocalPasses::head_rows(std::span<const SampleRow> rows) {
  std::vector<int64_t> places;
  for (const SampleRow& row : rows) {
    if (places.empty() || places.back() != row.row) places.push_back(row.row);
  }
  return places;
}

std::span<const SampledRow> LocalPasses::sample(HiddenRow::From from,
                                                std::span<const SampleRow> rows) {
  const DeviceRange range(model_->kernels->device(), "sample");
  NIBBLE_CHECK(sampler_ != nullptr);
  const int64_t vocab = model_->config.vocab_size;
  std::vector<SampleRow> asked(rows.begin(), rows.end());
  MatrixView logits{logits_.data(), DType::kF32, step_logits_, vocab, vocab};
  if (needs_head(from)) {
    const std::vector<int64_t> places = head_rows(rows);
    size_t place = 0;
    for (SampleRow& row : asked) {
      if (row.row != places[place]) ++place;
      row.row = static_cast<int64_t>(place);
    }
    if (!places.empty()) logits = head(from, places);
  }
  sampler_->sample(logits, asked);
  finish();
  return sampler_->results();
}

std::vector<float> LocalPasses::kept_weights(int64_t row) {
  NIBBLE_CHECK(sampler_ != nullptr);
  std::vector<float> weights(static_cast<size_t>(model_->config.vocab_size));
  const Status copied = sampler_->copy_weights(row, weights);
  if (!copied) throw PassFailure(copied.error());
  return weights;
}

// Nothing can go on without its device, so that an error here is thrown, not returned.
void LocalPasses::finish() {
  const Status status = model_->kernels->device().synchronize();
  if (!status) throw PassFailure(status.error());
  (void)heard({});
}

}  // namespace nibble
