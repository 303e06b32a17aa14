// ModelPasses on one device: the whole model, or one rank's part of it. Then all ranks call the
// same functions with the same arguments; logits come together on rank 0, and elsewhere no sink is
// called.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/model_passes.h"
#include "nibble/model/workspace.h"

namespace nibble {

class PaddedBatch;

struct PassOptions {
  // Numbers of tokens, ascending, of which passes over generated tokens are recorded, where the
  // backend can; a pass over fewer is filled up. Empty: nothing is recorded.
  std::vector<int64_t> graph_sizes;
  // Drawn drafts whose weights the device keeps at once, where it samples.
  int64_t num_weight_rows = 0;
};

// The sizes for batch_sizes sequences with and without drafts. Without any: all small ones and a
// few up to 127 tokens, from where on launches cost nothing beside the work.
std::vector<int64_t> step_graph_sizes(std::span<const int64_t> batch_sizes, int64_t max_batch_size,
                                      int64_t num_drafts);

// Where the device is not the host, passes are queued on it, and tokens are sampled there.
//
// The model must outlive it.
class LocalPasses : public ModelPasses {
 public:
  // max_rows: tokens of the largest batch. With cache.with_mtp the MTP layer's buffers are there,
  // too. Errors: kOutOfMemory, those of KvCache::create.
  static Result<std::unique_ptr<LocalPasses>> create(LoadedModel& model,
                                                     const KvCacheOptions& cache, int64_t max_rows,
                                                     const PassOptions& options = {});

  Status forward(const Batch& batch) override;
  void keep_hidden(std::span<const KeptRow> rows) override;
  Status forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) override;
  void logits(HiddenRow::From from, std::span<const RowRange> rows,
              const LogitsSink& sink) override;
  bool can_sample() const override { return sampler_ != nullptr; }
  std::span<const SampledRow> sample(HiddenRow::From from,
                                     std::span<const SampleRow> rows) override;
  int64_t num_weight_rows() const override { return sampler_ ? options_.num_weight_rows : 0; }
  std::vector<float> kept_weights(int64_t row) override;
  // The part of sample() that every rank has: the head over head_rows(rows), where needs_head().
  bool needs_head(HiddenRow::From from) const {
    return from != HiddenRow::From::kStep || step_logits_ == 0;
  }
  static std::vector<int64_t> head_rows(std::span<const SampleRow> rows);
  void run_head_over(HiddenRow::From from, std::span<const int64_t> rows) {
    (void)head(from, rows);
  }

  // Waits for the device. Throws PassFailure when it or another rank has failed.
  void finish();

  StepGraphStats graph_stats() const override {
    return graphs_ ? graphs_->stats() : StepGraphStats();
  }

  int64_t num_replayed() const override { return graphs_ ? graphs_->num_replayed() : 0; }

  // Runs batches as large as they get, so that operations take all the memory they will ever need:
  // a prompt that fills a step, and max_generated generated tokens deep in a context of
  // max_seq_len. The cache's first block is lost. Errors: those of the device.
  Status warm_up(int64_t max_generated, int64_t max_seq_len);
  // With attention data parallel: the next passes are filled up to so many tokens, on all ranks
  // alike, and recorded; 0: they are not. Where nothing is recorded it means nothing.
  void set_recorded_rows(int64_t rows) { recorded_rows_ = rows; }
  std::span<const int64_t> graph_sizes() const {
    return graphs_ ? std::span<const int64_t>(options_.graph_sizes) : std::span<const int64_t>();
  }

  // Records every size of PassOptions::graph_sizes now instead of when it comes. Before anything is
  // cached.
  Status record_all();

  const KvCache& cache() const { return cache_; }
  const Workspace& workspace() const { return workspace_; }

 private:
  LocalPasses(LoadedModel& model, KvCache cache, Workspace workspace)
      : model_(&model), cache_(std::move(cache)), workspace_(std::move(workspace)) {}

  Status heard(Status status) const;
  // What a pass is filled up to; 0: it is not recorded.
  int64_t size_of(const Batch& batch) const;
  // The filled up batch, as all ranks have it.
  Batch with_ranks(const PaddedBatch& padded);
  bool has_logits() const {
    return model_->weights.shard.attention().is_whole() || model_->weights.shard.rank == 0;
  }
  void run_head(const MatrixView& x, const MatrixView& out);
  MatrixView rows_of(const Buffer& buffer, int64_t rows) const;
  float* find(const HiddenRow& row) const;
  MatrixView head(HiddenRow::From from, std::span<const int64_t> rows);

  LoadedModel* model_;
  KvCache cache_;
  Workspace workspace_;
  PassOptions options_;
  int64_t max_rows_ = 0;
  int64_t recorded_rows_ = 0;
  std::vector<int64_t> tokens_of_ranks_;  // of a filled up batch
  // Memory of the device; [rows, hidden_size].
  Buffer hidden_;            // of forward(): max_rows
  Buffer previous_;          // input of forward_mtp(): max_rows
  Buffer mtp_hidden_;        // of forward_mtp(): max_rows
  Buffer block_hidden_;      // num_blocks
  Buffer gathered_;          // input of the head: kLogitRows
  Buffer logits_;            // [kLogitRows or the largest recorded pass, vocab_size]
  Buffer part_logits_;       // [this rank, and on rank 0 the others; rows; vocab_size / tp_size]
  Buffer host_logits_;       // [kLogitRows, vocab_size] that the host sees; empty on a host device
  int64_t step_logits_ = 0;  // logits_ holds those of so many rows of the last forward()
  std::unique_ptr<StepGraphs> graphs_;
  std::unique_ptr<DeviceSampler> sampler_;
};

}  // namespace nibble
