// R1 on several GPUs of one host, a thread for each: collectives, and whole steps of model/forward
// with random weights made on the devices.
#include <cuda_profiler_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "bench/cuda/gpu_timing.h"
#include "bench/cuda/or_exit.h"
#include "bench/cuda/r1_model.h"
#include "nibble/comm/cuda/cuda_communicator.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/device/cuda/cuda_device.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels.h"
#include "nibble/model/forward.h"

namespace nibble::bench {
namespace {

constexpr int kSamples = 9;
constexpr int kRepeats = 20;  // of a collective in a graph
constexpr int64_t kBlockSize = 64;
constexpr int64_t kHidden = 7168;

// Stands for the other ranks where one is looked at alone: its sums are left out, so that what it
// computes is wrong and what it costs is right but for them.
class SilentCommunicator : public Communicator {
 public:
  explicit SilentCommunicator(int size) : Communicator(0, size) {}
  std::string_view name() const override { return "none"; }

 protected:
  Status do_all_to_all(std::span<const ConstBytes> /*sends*/,
                       std::span<const Bytes> /*receives*/) override {
    return {};
  }
  Status do_all_reduce_sum(float* /*x*/, int64_t /*count*/) override { return {}; }
  Status do_all_gather(const void* /*in*/, std::span<const size_t> /*bytes*/,
                       void* /*out*/) override {
    return {};
  }
  Status do_reduce_scatter_sum(const float* /*in*/, std::span<const int64_t> /*counts*/,
                               float* /*out*/) override {
    return {};
  }
  void do_abort(std::string_view /*message*/) override {}
};

// The threads of all ranks between them.
struct Team {
  explicit Team(int ranks) : size(ranks), barrier(ranks), times(static_cast<size_t>(ranks)) {}
  int size;
  std::barrier<> barrier;
  std::vector<double> times;

  // The largest of all ranks' values, on all of them.
  double slowest(int rank, double mine) {
    times[static_cast<size_t>(rank)] = mine;
    barrier.arrive_and_wait();
    const double most = *std::max_element(times.begin(), times.end());
    barrier.arrive_and_wait();
    return most;
  }
};

class Rank {
 public:
  Rank(Team& team, Communicator& host, const RanksOptions& options)
      : team_(team), options_(options), rank_(host.rank()) {
    CudaOptions cuda;
    cuda.device = rank_;
    kernels_ = or_exit(make_cuda_kernels(cuda));
    if (options.alone) {
      comm_ = std::make_unique<SilentCommunicator>(options.tp_size);
      nccl_ = std::make_unique<SilentCommunicator>(options.tp_size);
      return;
    }
    comm_ = or_exit(cuda_communicator(device(), host));
    CudaCommunicatorOptions nccl_alone;
    nccl_alone.one_shot_bytes = 0;
    nccl_alone.one_shot_norm_rows = 0;
    CudaCommunicatorOptions norms = nccl_alone;
    norms.one_shot_norm_rows = 32;
    nccl_ = or_exit(cuda_communicator(device(), host, nccl_alone));
    norms_ = or_exit(cuda_communicator(device(), host, norms));
  }

  void collectives();
  void sums_with_norms();
  void steps();

 private:
  Device& device() { return kernels_->device(); }
  template <typename... Arguments>
  void print(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    if (rank_ != 0) return;
    fmt::print(format, std::forward<Arguments>(arguments)...);
    std::fflush(stdout);
  }
  double time(const std::function<void()>& work, bool as_graph);
  // Of one of kRepeats in a graph.
  double repeat(const std::function<void()>& work);
  void decode(const ModelConfig& config, const R1Model& model, int64_t batch, int64_t context,
              int64_t query_tokens);
  void prefill(const ModelConfig& config, const R1Model& model, int64_t tokens);
  void dispatches(const ModelConfig& config, R1Model& model);
  std::vector<int64_t> tokens_of_ranks(int64_t sequences, int64_t each) const;

  Team& team_;
  RanksOptions options_;
  int rank_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<Communicator> nccl_;
  std::unique_ptr<Communicator> norms_;  // up to 32 rows
  std::vector<KvCacheView> caches_;      // of all layers and the MTP layer
};

// Microseconds of the slowest rank, the median of nine.
double Rank::time(const std::function<void()>& work, bool as_graph) {
  cudaStream_t stream = cuda_stream(device());
  work();
  or_exit(device().synchronize());
  team_.barrier.arrive_and_wait();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (as_graph) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    work();
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  }
  team_.barrier.arrive_and_wait();
  const auto once = [&] {
    if (as_graph) {
      check_cuda(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    } else {
      work();
    }
  };
  once();
  or_exit(device().synchronize());
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> times;
  for (int i = 0; i < kSamples; ++i) {
    team_.barrier.arrive_and_wait();
    check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    once();
    check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    times.push_back(static_cast<double>(ms) * 1000);
  }
  or_exit(device().synchronize());
  or_exit(comm_->status());
  or_exit(nccl_->status());
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  if (as_graph) {
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
  }
  std::sort(times.begin(), times.end());
  return team_.slowest(rank_, times[times.size() / 2]);
}

double Rank::repeat(const std::function<void()>& work) {
  const auto all = [&] {
    for (int i = 0; i < kRepeats; ++i) work();
  };
  return time(all, true) / kRepeats;
}

// Sums of rows of 7168 binary32 values, checked first; 20 of them in a graph.
void Rank::collectives() {
  const Buffer x = or_exit(device().allocate(size_t{2048} * kHidden * sizeof(float)));
  const Buffer y = or_exit(device().allocate(size_t{2048} * kHidden * sizeof(float)));
  print("\ncollectives of {} GPUs, rows of 7168 binary32 values, us each in a graph of {}\n",
        team_.size, kRepeats);
  for (const int64_t rows : {1, 2, 4, 8, 32, 128, 2048}) {
    const int64_t count = rows * kHidden;
    for (Communicator* comm : {comm_.get(), nccl_.get()}) {
      std::vector<float> values(static_cast<size_t>(count), static_cast<float>(rank_ + 1));
      or_exit(device().copy_to_device(x.data(), std::as_bytes(std::span(values))));
      comm->all_reduce_sum(x.as<float>(), count);
      or_exit(device().copy_to_host(std::as_writable_bytes(std::span(values)), x.data()));
      const int sum = team_.size * (team_.size + 1) / 2;
      const auto expected = static_cast<float>(sum);
      for (const float value : values) {
        if (value != expected) fail(fmt::format("a sum is {}, not {}", value, expected));
      }
    }
    const double ours = repeat([&] { comm_->all_reduce_sum(x.as<float>(), count); });
    const double nccl = repeat([&] { nccl_->all_reduce_sum(x.as<float>(), count); });
    const std::vector<size_t> bytes(static_cast<size_t>(team_.size),
                                    static_cast<size_t>(count / team_.size) * sizeof(float));
    const std::vector<int64_t> counts(static_cast<size_t>(team_.size), count / team_.size);
    const double gather = repeat([&] { nccl_->all_gather(x.data(), bytes, y.data()); });
    const double scatter =
        repeat([&] { nccl_->reduce_scatter_sum(x.as<float>(), counts, y.as<float>()); });
    const double wire = 2.0 * (team_.size - 1) / team_.size * static_cast<double>(count) * 4;
    print(
        "{:>5} rows {:>9} bytes: all-reduce {:8.1f} (NCCL alone {:8.1f}, {:5.1f} GB/s), all-gather "
        "{:8.1f}, reduce-scatter {:8.1f}\n",
        rows, count * 4, ours, nccl, wire / nccl / 1000, gather, scatter);
  }
}

// A sublayer's parts added up, added to the residual stream and normed: in one kernel, and as a sum
// and a norm. The stream must get the same bits, the norm may differ in the last one.
void Rank::sums_with_norms() {
  constexpr int64_t kMostRows = 32;
  constexpr int64_t kCount = kMostRows * kHidden;
  std::vector<float> stream(kCount);
  std::vector<float> part(kCount);
  std::mt19937 shared_rng(1);
  std::mt19937 rng(static_cast<unsigned>(2 + rank_));
  std::normal_distribution<float> normal;
  for (float& v : stream) v = normal(shared_rng);
  for (float& v : part) v = normal(rng);
  const std::vector<float> weight(kHidden, 0.75F);
  const Buffer x = on_device(device(), stream);
  const Buffer y = on_device(device(), part);
  const Buffer w = on_device(device(), weight);
  const Buffer out = or_exit(device().allocate(kCount * sizeof(float)));
  print("\nsum, residual add and norm of rows of 7168, us each in a graph of {}\n", kRepeats);
  for (const int64_t rows : {1, 2, 3, 4, 8, 16, 17, 32}) {
    const MatrixView x_view{x.data(), DType::kF32, rows, kHidden, kHidden};
    const MatrixView y_view{y.data(), DType::kF32, rows, kHidden, kHidden};
    const MatrixView out_view{out.data(), DType::kF32, rows, kHidden, kHidden};
    const auto as_one = [&] {
      SumNorm sum;
      sum.y = y.as<float>();
      sum.rows = rows;
      sum.cols = kHidden;
      sum.x = x.as<float>();
      sum.x_stride = kHidden;
      sum.weight = w.as<const float>();
      sum.epsilon = 1e-6F;
      sum.out = out.as<float>();
      sum.out_stride = kHidden;
      if (!norms_->all_reduce_sum_norm(sum)) fail("no sum with a norm between these GPUs");
    };
    const auto as_two = [&] {
      comm_->all_reduce_sum(y.as<float>(), rows * kHidden);
      kernels_->add_rms_norm(x_view, y_view, w.as<const float>(), 1e-6F, out_view);
    };
    const auto run = [&](const std::function<void()>& work) {
      or_exit(device().copy_to_device(x.data(), std::as_bytes(std::span(stream))));
      or_exit(device().copy_to_device(y.data(), std::as_bytes(std::span(part))));
      work();
      std::vector<float> result(static_cast<size_t>(2 * rows * kHidden));
      const auto bytes = std::as_writable_bytes(std::span(result));
      or_exit(device().copy_to_host(bytes.first(bytes.size() / 2), x.data()));
      or_exit(device().copy_to_host(bytes.last(bytes.size() / 2), out.data()));
      return result;
    };
    const std::vector<float> one = run(as_one);
    const std::vector<float> two = run(as_two);
    const auto half = static_cast<std::ptrdiff_t>(rows * kHidden);
    // NCCL's order of a sum is its own.
    const bool in_order = rows * kHidden * 4 <= 65536 || team_.size == 2;
    if (in_order && !std::equal(one.begin(), one.begin() + half, two.begin())) {
      fail("the residual streams differ");
    }
    double largest = 0;
    for (size_t i = 0; i < one.size(); ++i) {
      largest =
          std::max(largest, std::abs(static_cast<double>(one[i]) - static_cast<double>(two[i])));
    }
    if (!(largest < 4e-6)) fail(fmt::format("norms differ by {}", largest));
    print("{:>5} rows {:>9} bytes: one kernel {:8.1f}, a sum and a norm {:8.1f}\n", rows,
          rows * kHidden * 4, repeat(as_one), repeat(as_two));
  }
}

// Sequences dealt in turn to the ranks, with attention data parallel.
std::vector<int64_t> Rank::tokens_of_ranks(int64_t sequences, int64_t each) const {
  std::vector<int64_t> tokens;
  tokens.reserve(static_cast<size_t>(team_.size));
  for (int r = 0; r < team_.size; ++r) {
    tokens.push_back((sequences + team_.size - 1 - r) / team_.size * each);
  }
  return tokens;
}

void Rank::decode(const ModelConfig& config, const R1Model& model, int64_t batch, int64_t context,
                  int64_t query_tokens) {
  const bool dp = options_.enable_attention_dp;
  const std::vector<int64_t> of_ranks = tokens_of_ranks(batch, query_tokens);
  const int64_t tokens = dp ? of_ranks[static_cast<size_t>(rank_)] : batch * query_tokens;
  const int64_t sequences = tokens / query_tokens;
  const int64_t blocks_each = context / kBlockSize;
  const int64_t most = dp ? of_ranks[0] / query_tokens : batch;
  if (blocks_each * most > caches_[0].num_blocks) {
    print("batch {:>3} context {:>5}: the cache of {} tokens is too small\n", batch, context,
          caches_[0].num_blocks * kBlockSize);
    return;
  }
  Workspace workspace = or_exit(Workspace::create(
      config, *kernels_, std::max<int64_t>(1, dp ? of_ranks[0] : tokens), model.weights().shard));
  std::vector<int32_t> table(static_cast<size_t>(blocks_each * std::max<int64_t>(1, sequences)));
  std::iota(table.begin(), table.end(), 0);
  std::mt19937 rng(5 + (dp ? static_cast<unsigned>(rank_) : 0));
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 129280);

  const auto batch_of = [&](std::vector<AttentionSegment>& segments, int64_t each) {
    segments.clear();
    for (int64_t b = 0; b < sequences; ++b) {
      segments.push_back(
          {b * each, each, context - each, table.data() + b * blocks_each, MlaForm::kAbsorbed});
    }
  };
  const Buffer logits = or_exit(device().allocate(
      static_cast<size_t>(std::max<int64_t>(1, tokens) * model.weights().lm_head.rows) * 4));
  const auto head = [&](int64_t rows) {
    if (rows == 0) return;
    const int64_t cols = model.weights().lm_head.rows;
    kernels_->linear(workspace.normed.slice_rows(0, rows), model.weights().lm_head,
                     MatrixView{logits.data(), DType::kF32, rows, cols, cols});
  };
  std::vector<AttentionSegment> segments;
  batch_of(segments, query_tokens);
  Batch step{ids, AttentionBatch{tokens, segments}};
  if (dp) step.tokens_of_ranks = of_ranks;
  const auto verify = [&] {
    or_exit(forward(config, model.weights(), step, caches_, *kernels_, workspace,
                    workspace.normed.slice_rows(0, tokens)));
    head(tokens);
  };
  if (options_.alone && std::getenv("NIBBLE_PROFILE") != nullptr) {
    verify();
    or_exit(device().synchronize());
    check_cuda(cudaProfilerStart(), "cudaProfilerStart");
    verify();
    or_exit(device().synchronize());
    check_cuda(cudaProfilerStop(), "cudaProfilerStop");
    return;
  }
  const double graph_us = time(verify, true);
  const double launched_us = time(verify, false);

  // Which experts the last layer took.
  std::vector<int32_t> chosen(static_cast<size_t>(dp ? 0 : tokens * 8));
  or_exit(device().copy_to_host(std::as_writable_bytes(std::span(chosen)), workspace.expert_ids));
  const size_t distinct = std::set<int32_t>(chosen.begin(), chosen.end()).size();

  double draft_us = 0;
  if (query_tokens > 1 && model.weights().mtp) {
    std::vector<AttentionSegment> draft_segments;
    batch_of(draft_segments, 1);
    const std::vector<int64_t> draft_of_ranks = tokens_of_ranks(batch, 1);
    Batch draft{std::span<const int32_t>(ids).first(static_cast<size_t>(sequences)),
                AttentionBatch{sequences, draft_segments}};
    if (dp) draft.tokens_of_ranks = draft_of_ranks;
    const Buffer previous = or_exit(
        device().allocate(static_cast<size_t>(std::max<int64_t>(1, sequences) * kHidden) * 4));
    fill_normal(previous.as<float>(), std::max<int64_t>(1, sequences) * kHidden, 1, 8,
                cuda_stream(device()));
    draft_us = time(
        [&] {
          or_exit(forward_mtp(config, model.weights(), draft,
                              MatrixView{previous.data(), DType::kF32, sequences, kHidden, kHidden},
                              caches_.back(), *kernels_, workspace,
                              workspace.normed.slice_rows(0, sequences)));
          head(sequences);
        },
        true);
  }
  std::string with_drafts;
  if (draft_us > 0) {
    const double round_ms = (graph_us + static_cast<double>(query_tokens - 1) * draft_us) / 1000;
    with_drafts = fmt::format(
        "; draft pass {:.3f} ms, round {:.2f} ms; at a FORCED acceptance of 2.8 tokens {:.1f} "
        "tokens/s",
        draft_us / 1000, round_ms, static_cast<double>(batch) * 2.8 * 1000 / round_ms);
  }
  print(
      "batch {:>3} x {} context {:>5}: step {:8.3f} ms as a graph, {:8.3f} without{}; {} "
      "experts{}\n",
      batch, query_tokens, context, graph_us / 1000, launched_us / 1000,
      query_tokens > 1
          ? std::string()
          : fmt::format(", {:.1f} tokens/s", static_cast<double>(batch) * 1e6 / graph_us),
      distinct, with_drafts);
}

void Rank::prefill(const ModelConfig& config, const R1Model& model, int64_t tokens) {
  const bool dp = options_.enable_attention_dp;
  constexpr int64_t kChunk = 2048;
  Workspace workspace =
      or_exit(Workspace::create(config, *kernels_, kChunk, model.weights().shard));
  std::vector<int32_t> table(static_cast<size_t>(tokens / kBlockSize));
  std::iota(table.begin(), table.end(), 0);
  if (static_cast<int64_t>(table.size()) > caches_[0].num_blocks) return;
  std::mt19937 rng(6);
  std::vector<int32_t> ids(static_cast<size_t>(kChunk));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 129280);
  const std::vector<int64_t> of_ranks(static_cast<size_t>(team_.size), kChunk);
  const double us = time(
      [&] {
        for (int64_t at = 0; at < tokens; at += kChunk) {
          const std::vector<AttentionSegment> segments = {
              {0, kChunk, at, table.data(), MlaForm::kExpanded}};
          Batch batch{ids, AttentionBatch{kChunk, segments}};
          if (dp) batch.tokens_of_ranks = of_ranks;
          or_exit(forward(config, model.weights(), batch, caches_, *kernels_, workspace,
                          workspace.normed.slice_rows(0, kChunk)));
        }
      },
      false);
  const int64_t all = dp ? tokens * team_.size : tokens;
  print("prompt of {} tokens{} in chunks of {}: {:.1f} ms, {:.0f} tokens/s\n", tokens,
        dp ? " on each rank" : "", kChunk, us / 1000, static_cast<double>(all) * 1e6 / us);
}

// Passes over prompts of many lengths, as many tokens on each rank: all tokens gathered, and each
// one sent to the ranks that hold one of its experts.
void Rank::dispatches(const ModelConfig& config, R1Model& model) {
  constexpr int64_t kMostTokens = 4096;
  Shard& shard = model.weights().shard;
  Workspace workspace = or_exit(Workspace::create(config, *kernels_, kMostTokens, shard));
  std::vector<int32_t> table(kMostTokens / kBlockSize);
  std::iota(table.begin(), table.end(), 0);
  std::mt19937 rng(7 + static_cast<unsigned>(rank_));
  std::vector<int32_t> ids(kMostTokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 129280);
  print("tokens of each rank: us a MoE layer gathered, sent, difference (passes launched)\n");
  for (int64_t tokens = kMostTokens; tokens >= 16; tokens /= 2) {
    const std::vector<int64_t> of_ranks(static_cast<size_t>(team_.size), tokens);
    const std::vector<AttentionSegment> segments = {
        {0, tokens, 0, table.data(), MlaForm::kExpanded}};
    Batch batch{std::span<const int32_t>(ids).first(static_cast<size_t>(tokens)),
                AttentionBatch{tokens, segments}};
    batch.tokens_of_ranks = of_ranks;
    double of_layer[2] = {};
    for (const All2AllBackend way :
         {All2AllBackend::kAllgatherReducescatter, All2AllBackend::kAlltoall}) {
      shard.all2all_backend = way;
      of_layer[way == All2AllBackend::kAlltoall ? 1 : 0] =
          time(
              [&] {
                or_exit(forward(config, model.weights(), batch, caches_, *kernels_, workspace,
                                workspace.normed.slice_rows(0, tokens)));
              },
              false) /
          options_.moe_layers;
    }
    print("{:>5}: {:9.1f} {:9.1f} {:+9.1f}\n", tokens, of_layer[0], of_layer[1],
          of_layer[1] - of_layer[0]);
  }
}

void Rank::steps() {
  R1Options options;
  options.dense_layers = options_.dense_layers;
  options.moe_layers = options_.moe_layers;
  options.shard = {rank_, options_.tp_size, options_.ep_size, options_.enable_attention_dp};
  options.comm = options_.tp_size > 1 ? comm_.get() : nullptr;
  const ModelConfig config = r1_config(options);
  const auto start = std::chrono::steady_clock::now();
  R1Model model(*kernels_, options);
  or_exit(device().synchronize());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options_.alone)
    print("\none rank of {}, alone: sums over the ranks are left out", options_.tp_size);
  print("\nTP{} EP{}{}, {} dense and {} MoE layers of R1 with an MTP layer; WEIGHTS ARE RANDOM\n",
        options_.tp_size, options_.ep_size, options_.enable_attention_dp ? " attention DP" : "",
        options_.dense_layers, options_.moe_layers);

  // An FP8 cache, as v2's checkpoint asks for, in what is left but 12 GB for the pass itself.
  const DeviceMemory before = or_exit(device().memory());
  const auto entry =
      static_cast<uint64_t>(576 * kBlockSize) * static_cast<uint64_t>(config.num_hidden_layers + 1);
  const uint64_t left = before.free_bytes > 12'000'000'000 ? before.free_bytes - 12'000'000'000 : 0;
  const auto blocks = static_cast<int64_t>(
      team_.slowest(
          rank_, -static_cast<double>(std::min<uint64_t>(left / entry, 128 * 8192 / kBlockSize))) *
      -1);
  if (blocks < 128) fail("no room for a cache of 8192 tokens: ask for fewer layers");
  std::vector<Buffer> pages;
  for (int i = 0; i <= config.num_hidden_layers; ++i) {
    pages.push_back(or_exit(device().allocate(static_cast<size_t>(blocks * kBlockSize * 576))));
    fill_packed(pages.back().data(), pages.back().size(), LinearFormat::kFp8Block, 3,
                cuda_stream(device()));
    caches_.push_back({pages.back().data(), DType::kF8E4m3, blocks, kBlockSize, 576});
  }
  const DeviceMemory after = or_exit(device().memory());
  for (int r = 0; r < team_.size; ++r) {
    if (r == rank_) {
      fmt::print(
          "rank {} on {}: weights {:.2f} GB made in {:.1f} s, cache {:.2f} GB ({} tokens), in use "
          "{:.2f} of {:.2f} GB\n",
          rank_, device().name(), static_cast<double>(model.weights().device_bytes) / 1e9, seconds,
          static_cast<double>(entry * static_cast<uint64_t>(blocks)) / 1e9, blocks * kBlockSize,
          static_cast<double>(after.total_bytes - after.free_bytes) / 1e9,
          static_cast<double>(after.total_bytes) / 1e9);
      std::fflush(stdout);
    }
    team_.barrier.arrive_and_wait();
  }
  if (options_.dispatch) return dispatches(config, model);
  if (options_.alone) {
    // For a profiler that is told to wait for the program's start (ncu --profile-from-start off).
    for (const int64_t batch : {1, 8, 32, 128}) decode(config, model, batch, 4096, 1);
    return;
  }
  for (const int64_t context : {1024, 4096, 8192}) {
    for (const int64_t batch : {1, 8, 32, 128, 256}) decode(config, model, batch, context, 1);
  }
  for (const int64_t batch : {1, 8, 32}) decode(config, model, batch, 4096, 4);
  for (const int64_t tokens : {2048, 8192}) prefill(config, model, tokens);
}

}  // namespace

void bench_ranks(const RanksOptions& options) {
  const int size = options.alone ? 1 : options.tp_size;
  if (num_cuda_devices() < size) {
    fmt::print("TP{}: this machine shows {} GPUs\n", size, num_cuda_devices());
    return;
  }
  Team team(size);
  auto hosts = thread_communicators(size);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(size));
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      Rank rank(team, *hosts[static_cast<size_t>(r)], options);
      if (size > 1 && !options.dispatch) {
        rank.collectives();
        rank.sums_with_norms();
      }
      rank.steps();
      team.barrier.arrive_and_wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace nibble::bench
