// Some of R1's layers on one GPU, with their routed experts in an ExpertStore.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/cuda/or_exit.h"
#include "bench/cuda/r1_model.h"
#include "bench/cuda/seeded_experts.h"
#include "nibble/model/forward.h"
#include "nibble/offload/tiered_store.h"

namespace nibble::bench {

// The i-th expert that is pinned: routing groups in turn.
int pinned_expert(int i);

struct StageOptions {
  int device = 0;
  int dense_layers = 0;
  int moe_layers = 0;
  int64_t max_tokens = 512;   // of a step
  int64_t max_sequences = 8;  // of `context` tokens each in the cache
  int64_t context = 4096;
};

// Tokens of one step: `query_tokens` for each of `sequences`, at the end of the context.
struct StageBatch {
  StageBatch(int64_t sequences, int64_t query_tokens, int64_t context, uint32_t seed);
  Batch batch() const { return {ids, AttentionBatch{static_cast<int64_t>(ids.size()), segments}}; }

  std::vector<int32_t> ids;
  std::vector<int32_t> table;
  std::vector<AttentionSegment> segments;
};

// Everything exits with a message when it fails.
class OffloadStage {
 public:
  explicit OffloadStage(const StageOptions& options);
  ~OffloadStage();
  OffloadStage(const OffloadStage&) = delete;
  OffloadStage& operator=(const OffloadStage&) = delete;

  // Where experts lie from now on. Of each layer `pinned` experts stay on the GPU; gpu_slots there
  // and ram_slots in RAM hold all layers' others. `shared`: as make_seeded_loader's.
  struct Places {
    int64_t gpu_slots = 0;
    int64_t ram_slots = 0;
    int pinned = 0;
    int prefetch_layers = 0;
    HostExperts host_experts = HostExperts::kOff;
    SlotAllocator ram;
    SharedSlots* shared = nullptr;
  };
  void place(const Places& places);
  void forget();  // the store

  void make_current();
  void embed(const Batch& batch);
  void layers(const Batch& batch);
  void head(const Batch& batch);
  // embed, layers and head.
  void step(const Batch& batch);
  void synchronize();
  MatrixView x(const Batch& batch) { return workspace_->x.slice_rows(0, batch.num_tokens()); }

  Kernels& kernels() { return *kernels_; }
  Weights& weights() { return model_->weights(); }
  TieredStore* store() { return store_.get(); }
  const ModelConfig& config() const { return config_; }
  int64_t num_experts() const { return int64_t{256} * options_.moe_layers; }

 private:
  StageOptions options_;
  std::unique_ptr<Kernels> kernels_;
  ModelConfig config_;
  std::unique_ptr<R1Model> model_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<Buffer> pages_;
  std::vector<KvCacheView> caches_;
  Buffer logits_;
  std::unique_ptr<TieredStore> store_;
};

// Bytes a second, in GB/s, of copies of whole records from page-locked memory, one after the other:
// what the link gives. The raw limit for what a store does.
double pinned_copy_rate(OffloadStage& stage);

}  // namespace nibble::bench
