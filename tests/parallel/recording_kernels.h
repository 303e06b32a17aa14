// The cpu backend with StepGraphs that record nothing but what they were asked for: by the rules of
// the cuda backend's, so that ranks can be compared without GPUs.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "nibble/comm/communicator.h"
#include "nibble/kernels/kernels.h"
#include "nibble/kernels/recorded_context.h"
#include "nibble/kernels/registry.h"
#include "nibble/kernels/step_graphs.h"

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

// Everything else is the cpu backend's.
class RecordingKernels final : public Kernels {
 public:
  RecordingKernels(Communicator& comm, RecordedRuns& log)
      : cpu_(make_kernels("cpu", {1, {}, false, {}}).value()), comm_(comm), log_(log) {}
  std::unique_ptr<StepGraphs> make_step_graphs() override {
    return std::make_unique<LoggingStepGraphs>(comm_, log_);
  }

  std::string_view name() const override { return cpu_->name(); }
  DType activation_dtype() const override { return cpu_->activation_dtype(); }
  Device& device() override { return cpu_->device(); }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override {
    return cpu_->packed_bytes(format, rows, cols);
  }
  std::string_view packed_layout() const override { return cpu_->packed_layout(); }
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override {
    return cpu_->pack(source, activation, destination);
  }
  size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const override {
    return cpu_->packed_mla_up_bytes(format, shape);
  }
  Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                  void* destination) const override {
    return cpu_->pack_mla_up(kv_b_proj, shape, destination);
  }
  void embed(const MatrixView& table, std::span<const int32_t> ids,
             const MatrixView& out) override {
    cpu_->embed(table, ids, out);
  }
  void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                const MatrixView& out) override {
    cpu_->rms_norm(x, weight, epsilon, out);
  }
  void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) override {
    cpu_->linear(x, weight, out);
  }
  void add(const MatrixView& x, const MatrixView& y) override { cpu_->add(x, y); }
  void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                    const AttentionBatch& batch) override {
    cpu_->rotary_query(q, shape, rope, batch);
  }
  void mla_cache_write(const MatrixView& kv_a, const float* weight, float epsilon,
                       const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                       const KvCacheView& cache) override {
    cpu_->mla_cache_write(kv_a, weight, epsilon, shape, rope, batch, cache);
  }
  void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                     const AttentionBatch& batch, const KvCacheView& cache,
                     const MatrixView& out) override {
    cpu_->mla_attention(q, weight, shape, batch, cache, out);
  }
  void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) override {
    cpu_->mlp(x, weight, out);
  }
  void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
             const RouterShape& shape, int32_t* expert_ids, float* weights) override {
    cpu_->route(x, gate, bias, shape, expert_ids, weights);
  }
  void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
           const RouterShape& shape, const int32_t* expert_ids, const float* weights,
           const MatrixView& out) override {
    cpu_->moe(x, experts, shared, shape, expert_ids, weights, out);
  }

 private:
  std::unique_ptr<Kernels> cpu_;
  Communicator& comm_;
  RecordedRuns& log_;
};

}  // namespace nibble::testing
