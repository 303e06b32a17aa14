#include "bench/cuda/offload_stage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels.h"
#include "nibble/kernels/host_mlp.h"
#include "nibble/offload/host_expert_rates.h"
#include "nibble/offload/host_tier_loader.h"

namespace nibble::bench {
namespace {

constexpr int64_t kBlockSize = 64;
constexpr int64_t kVocab = 129280;
constexpr int kFillThreads = 8;

}  // namespace

int pinned_expert(int i) { return i % 8 * 32 + i / 8; }

StageBatch::StageBatch(int64_t sequences, int64_t query_tokens, int64_t context, uint32_t seed)
    : ids(static_cast<size_t>(sequences * query_tokens)) {
  std::mt19937 rng(seed);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % kVocab);
  const int64_t blocks_each = context / kBlockSize;
  table.resize(static_cast<size_t>(blocks_each * sequences));
  std::iota(table.begin(), table.end(), 0);
  for (int64_t s = 0; s < sequences; ++s) {
    segments.push_back({s * query_tokens, query_tokens, context - query_tokens,
                        table.data() + s * blocks_each, MlaForm::kAbsorbed});
  }
}

OffloadStage::OffloadStage(const StageOptions& options) : options_(options) {
  CudaOptions cuda;
  cuda.device = options.device;
  kernels_ = or_exit(make_cuda_kernels(cuda));
  make_current();
  R1Options r1;
  r1.dense_layers = options.dense_layers;
  r1.moe_layers = options.moe_layers;
  r1.with_mtp = false;
  r1.with_experts = false;
  r1.other_routers = true;
  r1.o_proj = LinearFormat::kBf16;
  config_ = r1_config(r1);
  model_ = std::make_unique<R1Model>(*kernels_, r1);
  Device& device = kernels_->device();
  const int64_t num_blocks = options.context / kBlockSize * options.max_sequences;
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    const int64_t values = num_blocks * kBlockSize * 576;
    pages_.push_back(or_exit(device.allocate(static_cast<size_t>(values) * 2)));
    fill_bf16(pages_.back().data(), values, 3, cuda_stream(device));
    caches_.push_back({pages_.back().data(), DType::kBf16, num_blocks, kBlockSize, 576});
  }
  workspace_ = std::make_unique<Workspace>(
      or_exit(Workspace::create(config_, *kernels_, options.max_tokens)));
  logits_ = or_exit(device.allocate(static_cast<size_t>(options.max_sequences * kVocab) * 4));
}

OffloadStage::~OffloadStage() { forget(); }

void OffloadStage::forget() {
  synchronize();
  model_->weights().expert_store = nullptr;
  store_.reset();
}

void OffloadStage::place(const Places& places) {
  forget();
  make_current();
  const size_t bytes = seeded_expert_bytes(*kernels_);
  TieredStoreOptions below;
  below.memory_bytes = bytes * static_cast<uint64_t>(places.ram_slots);
  below.allocate_slots = places.ram;
  auto ram = or_exit(TieredStore::create(make_seeded_loader(*kernels_, kFillThreads, places.shared),
                                         config_, false, std::move(below)));
  TieredStoreOptions options;
  options.memory_bytes = bytes * static_cast<uint64_t>(places.gpu_slots);
  options.prefetch_layers = places.prefetch_layers;
  options.allocate_slots = device_slots(kernels_->device());
  options.on_device = true;
  options.hot_share = 1;
  for (int layer = options_.dense_layers; layer < config_.num_hidden_layers; ++layer) {
    for (int i = 0; i < places.pinned; ++i) {
      options.hot_experts.push_back({layer, pinned_expert(i)});
    }
  }
  HostExpertRates rates;
  if (places.host_experts != HostExperts::kOff) {
    std::vector<HotExpert> measured;
    for (int e = 0; e < 8; ++e) measured.push_back({options_.dense_layers, e});
    rates = or_exit(measure_host_experts(*ram, measured, *kernels_->staged_moe()->host_mlp(),
                                         kernels_->device(), 1));
    fmt::print("\n{}: {:.3f} ms an expert, {:.3f} ms for each further token; a copy {:.3f} ms",
               kernels_->staged_moe()->host_mlp()->name(), 1e3 * rates.first_token,
               1e3 * rates.next_token, 1e3 * rates.copy);
  }
  store_ =
      or_exit(TieredStore::create(or_exit(make_host_tier_loader(std::move(ram), kernels_->device(),
                                                                1, places.host_experts, rates)),
                                  config_, false, std::move(options)));
  model_->weights().expert_store = store_.get();
  synchronize();
}

void OffloadStage::make_current() { check_cuda(cudaSetDevice(options_.device), "cudaSetDevice"); }

void OffloadStage::embed(const Batch& batch) {
  kernels_->embed(model_->weights().embed_tokens, batch.token_ids, x(batch));
}

void OffloadStage::layers(const Batch& batch) {
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    or_exit(forward_layer(config_, model_->weights(), i, batch, caches_[static_cast<size_t>(i)],
                          *kernels_, *workspace_, {}));
  }
}

void OffloadStage::head(const Batch& batch) {
  const MatrixView hidden = workspace_->normed.slice_rows(0, batch.num_tokens());
  kernels_->rms_norm(x(batch), model_->weights().norm, 1e-6f, hidden);
  const auto rows = std::min(batch.num_tokens(), options_.max_sequences);
  kernels_->linear(hidden.slice_rows(0, rows), model_->weights().lm_head,
                   MatrixView{logits_.data(), DType::kF32, rows, kVocab, kVocab});
}

void OffloadStage::step(const Batch& batch) {
  embed(batch);
  layers(batch);
  head(batch);
}

void OffloadStage::synchronize() { or_exit(kernels_->device().synchronize()); }

double pinned_copy_rate(OffloadStage& stage) {
  constexpr int kRecords = 16;
  constexpr int kCopies = 160;
  Device& device = stage.kernels().device();
  stage.make_current();
  const size_t bytes = seeded_expert_bytes(stage.kernels());
  const Buffer from = or_exit(device.allocate_host_visible(kRecords * bytes));
  const Buffer to = or_exit(device.allocate(kRecords * bytes));
  const cudaStream_t stream = cuda_stream(device);
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  const auto copy = [&](int i) {
    const size_t at = static_cast<size_t>(i % kRecords) * bytes;
    check_cuda(cudaMemcpyAsync(to.as<std::byte>() + at, from.as<std::byte>() + at, bytes,
                               cudaMemcpyHostToDevice, stream),
               "cudaMemcpyAsync");
  };
  for (int i = 0; i < kRecords; ++i) copy(i);
  check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
  for (int i = 0; i < kCopies; ++i) copy(i);
  check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
  check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  return kCopies * static_cast<double>(bytes) / static_cast<double>(ms) / 1e6;
}

}  // namespace nibble::bench
