// One model on several ranks: rank 0 decides, all execute the same passes.
#pragma once

#include <memory>
#include <span>

#include "nibble/base/result.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/local_passes.h"
#include "nibble/engine/model_passes.h"
#include "nibble/engine/pass_plan.h"
#include "nibble/engine/rank_link.h"

namespace nibble {

// On rank 0: each call goes to the other ranks as a message over host memory, then all carry it
// out, meeting in the collectives of the pass. Its end is the end of their caches, too.
class RankPasses : public ModelPasses {
 public:
  // model.comm is there; the model must outlive it. Errors: those of set_up_passes().
  static Result<std::unique_ptr<RankPasses>> create(LoadedModel& model, const PassPlan& plan);

  int64_t num_blocks() const { return num_blocks_; }

  Status forward(const Batch& batch) override;
  void keep_hidden(std::span<const KeptRow> rows) override;
  Status forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) override;
  void logits(HiddenRow::From from, std::span<const RowRange> rows,
              const LogitsSink& sink) override;
  bool can_sample() const override { return local_->can_sample(); }
  std::span<const SampledRow> sample(HiddenRow::From from,
                                     std::span<const SampleRow> rows) override;
  int64_t num_weight_rows() const override { return local_->num_weight_rows(); }
  std::vector<float> kept_weights(int64_t row) override;
  StepGraphStats graph_stats() const override { return local_->graph_stats(); }
  int64_t num_replayed() const override { return local_->num_replayed(); }

 private:
  RankPasses(Communicator& comm, SetUpPasses local, int64_t block_size);

  std::unique_ptr<LocalPasses> local_;
  int64_t num_blocks_;
  int64_t block_size_;
  RankLink link_;  // goes first
};

// The life of every other rank: carries out what rank 0 sends, for one engine after another, until
// rank 0's model ends. Errors: kUnavailable when another rank failed; a failure of this one is told
// to the others and returned.
Status serve_rank(LoadedModel& model);

}  // namespace nibble
