// ModelPasses on one device.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/model_passes.h"
#include "nibble/model/workspace.h"

namespace nibble {

// The model must outlive it.
class LocalPasses : public ModelPasses {
 public:
  // max_rows: tokens of the largest batch. With cache.with_mtp the MTP layer's buffers are there,
  // too. Errors: kOutOfMemory, those of KvCache::create.
  static Result<std::unique_ptr<LocalPasses>> create(LoadedModel& model,
                                                     const KvCacheOptions& cache, int64_t max_rows);

  Status forward(const Batch& batch) override;
  void keep_hidden(std::span<const KeptRow> rows) override;
  Status forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) override;
  void logits(HiddenRow::From from, std::span<const RowRange> rows,
              const LogitsSink& sink) override;

  const KvCache& cache() const { return cache_; }
  const Workspace& workspace() const { return workspace_; }

 private:
  LocalPasses(LoadedModel& model, KvCache cache, Workspace workspace)
      : model_(&model), cache_(std::move(cache)), workspace_(std::move(workspace)) {}

  void finish();  // waits for the device
  MatrixView rows_of(const Buffer& buffer, int64_t rows) const;
  const float* find(const HiddenRow& row) const;

  LoadedModel* model_;
  KvCache cache_;
  Workspace workspace_;
  // Memory that the host sees, too; [rows, hidden_size].
  Buffer hidden_;        // of forward(): max_rows
  Buffer previous_;      // input of forward_mtp(): max_rows
  Buffer mtp_hidden_;    // of forward_mtp(): max_rows
  Buffer block_hidden_;  // num_blocks
  Buffer gathered_;      // input of the head: kLogitRows
  Buffer logits_;        // [kLogitRows, vocab_size]
};

}  // namespace nibble
