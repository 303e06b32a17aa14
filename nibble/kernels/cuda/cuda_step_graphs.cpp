#include "nibble/kernels/cuda/cuda_step_graphs.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <map>
#include <tuple>

#include "nibble/base/log.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/recorded_context.h"

namespace nibble::cuda {
namespace {

struct ExecDeleter {
  void operator()(cudaGraphExec_t exec) const { (void)cudaGraphExecDestroy(exec); }
};
using Exec = std::unique_ptr<CUgraphExec_st, ExecDeleter>;

class CudaStepGraphs final : public StepGraphs {
 public:
  explicit CudaStepGraphs(CudaKernels& kernels) : kernels_(&kernels) {
    for (Event* event : {&begin_, &end_}) {
      cudaEvent_t made = nullptr;
      if (cudaEventCreate(&made) == cudaSuccess) event->reset(made);
    }
  }

  void run(int kind, std::span<const int32_t> token_ids, const AttentionBatch& attention,
           const KvCacheView& cache, const std::function<void()>& work) override {
    const int64_t bound = recorded_context(attention);
    Entry& entry = entries_[{kind, attention.num_tokens, bound}];
    kernels_->set_context_bound(bound);
    kernels_->make_copies_void();
    // From here on every operation finds its inputs in place, so that none is sent from inside.
    const bool staged = kernels_->stage(token_ids, attention, cache);
    if (staged && entry.exec && entry.generation == memory_generation(kernels_->device())) {
      launch(entry);
    } else if (!staged || entry.refused || entry.runs < kRunsBeforeRecording) {
      // The first run makes all memory that it needs.
      work();
      ++entry.runs;
    } else {
      record(entry, kind, attention.num_tokens, work);
    }
    kernels_->set_context_bound(0);
    kernels_->make_copies_void();
  }

  int64_t num_replayed() const override { return stats_.num_replayed; }

  StepGraphStats stats() const override {
    add_elapsed();
    StepGraphStats stats = stats_;
    stats.num_graphs = 0;
    for (const auto& [key, entry] : entries_) {
      if (entry.exec && entry.generation == memory_generation(kernels_->device()))
        ++stats.num_graphs;
    }
    return stats;
  }

 private:
  struct Entry {
    int64_t runs = 0;  // that were not replayed
    bool refused = false;
    Exec exec;
    uint64_t generation = 0;
  };

  void launch(Entry& entry) {
    add_elapsed();
    const bool timed = begin_ && end_;
    if (timed) (void)cudaEventRecord(begin_.get(), kernels_->stream());
    kernels_->keep(cudaGraphLaunch(entry.exec.get(), kernels_->stream()), "replay of a step");
    if (timed) timing_ = cudaEventRecord(end_.get(), kernels_->stream()) == cudaSuccess;
    ++stats_.num_replayed;
  }

  // The time of the last replay. One that has not ended when the next begins is not counted.
  void add_elapsed() const {
    float ms = 0;
    if (timing_ && cudaEventQuery(end_.get()) == cudaSuccess &&
        cudaEventElapsedTime(&ms, begin_.get(), end_.get()) == cudaSuccess) {
      stats_.device_seconds += static_cast<double>(ms) / 1000;
    }
    timing_ = false;
  }

  void record(Entry& entry, int kind, int64_t tokens, const std::function<void()>& work) {
    entry.exec.reset();
    const uint64_t generation = memory_generation(kernels_->device());
    const uint64_t free_before = free_bytes();
    cudaStream_t stream = kernels_->stream();
    cudaError_t code = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaGraph_t graph = nullptr;
    if (code == cudaSuccess) {
      work();
      code = cudaStreamEndCapture(stream, &graph);
    }
    cudaGraphExec_t exec = nullptr;
    if (code == cudaSuccess) code = cudaGraphInstantiate(&exec, graph, 0);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    if (code != cudaSuccess || generation != memory_generation(kernels_->device())) {
      (void)cudaGetLastError();
      if (exec != nullptr) (void)cudaGraphExecDestroy(exec);
      if (code != cudaSuccess) {
        log_warning(fmt::format(
            "steps of {} tokens (kind {}) could not be recorded as a CUDA graph and are launched "
            "kernel by kernel: {}",
            tokens, kind, cudaGetErrorString(code)));
        entry.refused = true;
      }
      work();
      return;
    }
    entry.exec.reset(exec);
    entry.generation = generation;
    ++stats_.num_recorded;
    const uint64_t free_after = free_bytes();
    stats_.device_bytes += free_before > free_after ? free_before - free_after : 0;
    launch(entry);
  }

  static uint64_t free_bytes() {
    size_t free = 0;
    size_t total = 0;
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
  }

  CudaKernels* kernels_;
  std::map<std::tuple<int, int64_t, int64_t>, Entry> entries_;
  using Event = std::unique_ptr<CUevent_st, EventDeleter>;
  Event begin_;
  Event end_;
  mutable bool timing_ = false;  // both events were recorded
  mutable StepGraphStats stats_;
};

}  // namespace

std::unique_ptr<StepGraphs> make_cuda_step_graphs(CudaKernels& kernels) {
  return std::make_unique<CudaStepGraphs>(kernels);
}

}  // namespace nibble::cuda
