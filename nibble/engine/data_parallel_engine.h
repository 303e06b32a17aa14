// An engine whose ranks have their own sequences: attention data parallel.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "nibble/engine/engine.h"
#include "nibble/engine/lane_passes.h"

namespace nibble {

// Rank 0 keeps a scheduler, a block pool and a sampler for each rank ("lane"); this object itself
// is rank 0's lane. max_batch_size and max_num_tokens are per rank. choose_lane() says which lane
// takes a new request. stats() counts the steps of all ranks together: their tokens and sequences.
class DataParallelEngine : public Engine {
 public:
  // The model must outlive it. Errors: those of LaneGroup::create, Engine::create.
  static Result<std::unique_ptr<Engine>> create(LoadedModel& model, const EngineOptions& options,
                                                const PassPlan& plan);

  Result<uint64_t> add(Request request) override;
  void cancel(uint64_t id) override;
  bool has_work() const override;
  std::vector<RequestUpdate> step() override;
  EngineStats stats() const override;
  void reset_prefix_cache() override;

 private:
  DataParallelEngine(LoadedModel& model, const EngineOptions& options,
                     std::unique_ptr<LaneGroup> group);

  int num_lanes() const { return static_cast<int>(others_.size()) + 1; }
  // A lane's part of one step.
  std::vector<RequestUpdate> step_lane(int lane);
  bool lane_has_work(int lane) const;

  // Sums over all lanes since they were made.
  struct LaneWork {
    int64_t steps = 0;
    int64_t prefill_steps = 0;  // of these
    int64_t decode_steps = 0;
    int64_t tokens = 0;
    int64_t sequences = 0;
  };
  LaneWork work_of_lanes() const;
  void count_step(const LaneWork& before, std::chrono::steady_clock::time_point start);

  // Destroyed before the base, whose own passes hold nothing of it but a reference that is not used
  // any more.
  std::unique_ptr<LaneGroup> group_;
  std::vector<std::unique_ptr<Engine>> others_;  // the lanes of ranks 1 and up
  StepCount prefill_steps_;
  StepCount decode_steps_;
  StepCount mixed_steps_;
};

}  // namespace nibble
