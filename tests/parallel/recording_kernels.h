// The cpu backend with StepGraphs that record nothing but what they were asked for: by the rules of
// the cuda backend's, so that ranks can be compared without GPUs.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "nibble/comm/communicator.h"
#include "nibble/kernels/recorded_context.h"
#include "tests/engine/told_sampler.h"
#include "tests/model/forwarding_kernels.h"

namespace nibble::testing {

// One StepGraphs::run() of a rank.
struct RecordedRun {
  enum Way { kLaunched, kRecorded, kReplayed };
  int kind = 0;
  int64_t num_tokens = 0;
  int64_t context = 0;  // recorded_context()
  Way way = kLaunched;
  uint64_t num_collectives = 0;  // that it took, which a graph would have inside
  bool operator==(const RecordedRun&) const = default;
};

struct RecordedRuns {
  std::vector<RecordedRun> runs;
  int64_t num_filled_up = 0;  // tokens that repeat the one before
};

class LoggingStepGraphs final : public StepGraphs {
 public:
  LoggingStepGraphs(Communicator& comm, RecordedRuns& log) : comm_(comm), log_(log) {}

  void run(int kind, std::span<const int32_t> /*token_ids*/, const AttentionBatch& attention,
           const KvCacheView& /*cache*/, const std::function<void()>& work) override {
    RecordedRun run{kind, attention.num_tokens, recorded_context(attention), RecordedRun::kLaunched,
                    0};
    int64_t& runs = runs_[{run.kind, run.num_tokens, run.context}];
    if (runs >= kRunsBeforeRecording) {
      run.way = runs == kRunsBeforeRecording ? RecordedRun::kRecorded : RecordedRun::kReplayed;
    }
    ++runs;
    const uint64_t before = comm_.position().number;
    work();
    run.num_collectives = comm_.position().number - before;
    if (run.way == RecordedRun::kReplayed) ++stats_.num_replayed;
    log_.runs.push_back(run);
    const auto last = [](const AttentionSegment& segment) {
      return std::pair(segment.block_table, segment.first_position + segment.num_tokens);
    };
    for (size_t i = 1; i < attention.segments.size(); ++i) {
      if (last(attention.segments[i]) == last(attention.segments[i - 1])) ++log_.num_filled_up;
    }
  }
  StepGraphStats stats() const override { return stats_; }
  int64_t num_replayed() const override { return stats_.num_replayed; }

 private:
  Communicator& comm_;
  RecordedRuns& log_;
  std::map<std::tuple<int, int64_t, int64_t>, int64_t> runs_;
  StepGraphStats stats_;
};

// Everything else is the cpu backend's. With `left_to_host` tokens are sampled as on a device, but
// for that part of the rows.
class RecordingKernels final : public ForwardingKernels {
 public:
  RecordingKernels(Communicator& comm, RecordedRuns& log, std::optional<double> left_to_host = {})
      : ForwardingKernels(make_kernels("cpu", {1, {}, false, false, {}}).value()),
        comm_(comm),
        log_(log),
        left_to_host_(left_to_host) {}
  std::unique_ptr<StepGraphs> make_step_graphs() override {
    return std::make_unique<LoggingStepGraphs>(comm_, log_);
  }
  Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t /*vocab_size*/) override {
    if (!left_to_host_) return std::unique_ptr<DeviceSampler>();
    return std::unique_ptr<DeviceSampler>(std::make_unique<ToldSampler>(*left_to_host_));
  }

 private:
  Communicator& comm_;
  RecordedRuns& log_;
  std::optional<double> left_to_host_;
};

}  // namespace nibble::testing
