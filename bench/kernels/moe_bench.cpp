// Kernels::moe on DeepSeek-R1's layer in NVFP4: 8 experts of 7168 x 2048 a token and the shared
// one, chosen at random. Bytes are those of the distinct experts that a step touches, so of_read is
// the share of the read bandwidth as for a plain product; of_peak is the share of 16-bit products,
// or of AMX's tiles of BF16 where the machine has them.
// The layer has all 256 experts (6.4 GB) where memory allows, else 64: a step's experts come from
// memory all the same.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bench/kernels/machine_limits.h"
#include "nibble/base/cpu_features.h"
#include "nibble/kernels/registry.h"

namespace nibble {
namespace {

constexpr int64_t kHidden = 7168;
constexpr int64_t kWidth = 2048;
constexpr int kChosen = 8;

int num_experts() {
  static const int kExperts = memory_info().available_bytes > (uint64_t{10} << 30) ? 256 : 64;
  return kExperts;
}

// A matrix of random codes, packed once; the others are copies of its bytes.
struct Layer {
  std::unique_ptr<Kernels> kernels;  // whose memory it is
  Buffer memory;
  std::vector<MlpWeight> experts;  // the last is the shared one
  size_t expert_bytes = 0;
};

Layer make_layer() {
  Layer layer;
  layer.kernels = make_kernels("cpu").value();
  Kernels& kernels = *layer.kernels;
  std::mt19937_64 rng(1);
  const auto count = static_cast<size_t>(kHidden * kWidth);
  std::vector<uint64_t> codes(count / 16);
  for (uint64_t& word : codes) word = rng();
  std::vector<uint8_t> scales(count / 16);
  for (uint8_t& scale : scales) scale = static_cast<uint8_t>(0x20 + rng() % 0x20);
  const size_t bytes = kernels.packed_bytes(LinearFormat::kNvfp4, kWidth, kHidden);
  layer.expert_bytes = 3 * bytes;
  layer.memory = kernels.device().allocate((num_experts() + 1) * layer.expert_bytes).value();
  char* place = layer.memory.as<char>();
  const auto pack = [&](int64_t rows, int64_t cols) {
    const HostLinear host = {LinearFormat::kNvfp4, rows,  cols, codes.data(),
                             scales.data(),        1e-3f, 1};
    const auto weight = kernels.pack(host, ActivationFormat::kUnquantized, place).value();
    place += bytes;
    return weight;
  };
  layer.experts.push_back({pack(kWidth, kHidden), pack(kWidth, kHidden), pack(kHidden, kWidth)});
  for (int e = 1; e <= num_experts(); ++e) {
    std::memcpy(place, layer.memory.data(), layer.expert_bytes);
    MlpWeight expert = layer.experts[0];
    expert.gate_proj.data = place;
    expert.up_proj.data = place + bytes;
    expert.down_proj.data = place + 2 * bytes;
    layer.experts.push_back(expert);
    place += layer.expert_bytes;
  }
  return layer;
}

void bench_moe(benchmark::State& state, int threads) {
  const int64_t tokens = state.range(0);
  KernelOptions options;
  options.threads = threads;
  auto kernels = make_kernels("cpu", options).value();
  static const Layer kLayer = make_layer();
  const int experts = num_experts();
  RouterShape shape;
  shape.n_routed_experts = experts;
  shape.num_experts_per_tok = kChosen;

  std::mt19937 rng(2);
  std::vector<float> x(static_cast<size_t>(tokens * kHidden));
  for (float& v : x) v = static_cast<float>(rng() % 2001) / 1000 - 1;
  std::vector<float> out(x.size());
  const std::vector<float> weights(static_cast<size_t>(tokens * kChosen), 0.3f);
  const MatrixView x_view{x.data(), DType::kF32, tokens, kHidden, kHidden};
  const MatrixView out_view{out.data(), DType::kF32, tokens, kHidden, kHidden};
  // A few choices in turn.
  std::vector<std::vector<int32_t>> choices(16);
  double touched = 0;
  for (auto& ids : choices) {
    std::vector<int32_t> all(static_cast<size_t>(experts));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(all.begin(), all.end(), rng);
      ids.insert(ids.end(), all.begin(), all.begin() + kChosen);
    }
    touched += static_cast<double>(std::set<int32_t>(ids.begin(), ids.end()).size() + 1) /
               static_cast<double>(choices.size());
  }

  const MachineLimits before = measure_limits(threads);
  size_t next = 0;
  for (auto _ : state) {
    kernels->moe(x_view, std::span(kLayer.experts).first(static_cast<size_t>(experts)),
                 &kLayer.experts.back(), shape, choices[next].data(), weights.data(), out_view);
    next = (next + 1) % choices.size();
  }
  const MachineLimits after = measure_limits(threads);
  const double read = (before.read_gb_per_s + after.read_gb_per_s) / 2;
  const double integers = (before.int16_gops + after.int16_gops) / 2;
  const double tiles = (before.amx_gflops + after.amx_gflops) / 2;
  const double vectors = integers > 0 ? integers : (before.fma_gflops + after.fma_gflops) / 2;
  const double peak = tiles > 0 ? tiles : vectors;
  const double gigabytes = touched * static_cast<double>(kLayer.expert_bytes) / 1e9;
  const double operations =
      2e-9 * static_cast<double>(tokens * (kChosen + 1) * 3 * kHidden * kWidth);
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(gigabytes, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] = Counter(gigabytes / read, Counter::kIsIterationInvariantRate);
  state.counters["GOP/s"] = Counter(operations, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = Counter(operations / peak, Counter::kIsIterationInvariantRate);
  state.counters["experts"] = touched - 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;  // NOLINT(google-build-using-namespace): this file's own names
  benchmark::Initialize(&argc, argv);
  std::vector<int> thread_counts = {1};
  if (available_processors() > 1) thread_counts.push_back(available_processors());
  for (const int threads : thread_counts) {
    auto* const registered = benchmark::RegisterBenchmark(
        ("moe/nvfp4/threads:" + std::to_string(threads)).c_str(), bench_moe, threads);
    registered->Unit(benchmark::kMillisecond);
    for (const int tokens : {1, 2, 4, 8, 32, 128, 512}) registered->Arg(tokens);
    if (threads > 1) registered->UseRealTime();
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
