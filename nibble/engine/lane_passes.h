// Attention data parallel: each rank has its own sequences, and all meet in the MoE layers.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/local_passes.h"
#include "nibble/engine/model_passes.h"
#include "nibble/engine/pass_message.h"
#include "nibble/engine/rank_link.h"

namespace nibble {

// On rank 0: the passes of every rank's lane, each called from a thread of its own. A round begins
// when every lane that is in its step wants something: then all lanes that want the same kind of
// pass get it at once, the others lend their experts. Kept hidden states and logits go first, then
// the MTP layer, then the model, so that lanes that have fallen behind catch up.
class LaneGroup {
 public:
  // model.comm is there; the model must outlive it. Errors: those of set_up_passes().
  static Result<std::unique_ptr<LaneGroup>> create(LoadedModel& model, const PassPlan& plan);
  LaneGroup(const LaneGroup&) = delete;
  LaneGroup& operator=(const LaneGroup&) = delete;

  int64_t num_blocks() const { return num_blocks_; }  // of each rank's cache

  // The passes of rank `lane`; they must not outlive the group.
  std::unique_ptr<ModelPasses> passes(int lane);

  // So many lanes are in their steps from now on; each of them leaves when its step has ended.
  void enter(int num_lanes);
  void leave();

 private:
  friend class LanePasses;

  // What one lane wants, and what it got.
  struct Call {
    PassKind kind = PassKind::kForward;
    std::vector<std::byte> message;
    int64_t rows = 0;           // tokens of a pass
    int64_t context = 0;        // recorded_context()
    bool is_generated = false;  // all of them
    int64_t answer_size = 0;    // bytes
    std::vector<std::byte> answer;
    Status status;
    bool is_done = false;
  };

  LaneGroup(LoadedModel& model, SetUpPasses local, int64_t block_size);
  // Throws PassFailure when a rank has failed.
  void perform(int lane, Call& call);
  void run_round();
  // PassRound::recorded_rows.
  int64_t recorded_rows(PassKind kind) const;

  LoadedModel& model_;
  std::unique_ptr<LocalPasses> local_;
  int64_t num_blocks_;
  int64_t block_size_;

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::vector<Call*> calls_;  // by lane; null: none
  int num_calls_ = 0;
  int num_in_step_ = 0;
  std::optional<Error> failure_;
  RankLink link_;  // goes first
};

// A rank's part of a round that rank 0 has sent (PassKind::kRound).
Status carry_out_round(const PassMessage& message, LoadedModel& model, LocalPasses& local);

}  // namespace nibble
