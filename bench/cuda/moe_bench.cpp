// One MoE layer of R1: 256 experts and the shared one, tokens routed uniformly at random; bytes are
// those of the distinct experts touched.
#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <set>

#include "bench/cuda/gpu_timing.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

constexpr int kExperts = 256;
constexpr int kPerToken = 8;
constexpr int64_t kHidden = 7168;
constexpr int64_t kIntermediate = 2048;

struct Choice {
  Buffer ids;
  Buffer weights;
  size_t distinct = 0;
};

Choice choose(Device& device, int64_t tokens, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids;
  std::set<int32_t> distinct;
  for (int64_t t = 0; t < tokens; ++t) {
    std::set<int32_t> chosen;
    while (chosen.size() < kPerToken) chosen.insert(static_cast<int32_t>(rng() % kExperts));
    ids.insert(ids.end(), chosen.begin(), chosen.end());
    distinct.insert(chosen.begin(), chosen.end());
  }
  const std::vector<float> weights(ids.size(), 0.3f);
  return {on_device(device, ids), on_device(device, weights), distinct.size()};
}

}  // namespace

void bench_moe(Kernels& kernels, const Limits& limits) {
  fmt::print("\nMoE layer, {} experts of {} x {}, {} a token, and the shared one\n", kExperts,
             kHidden, kIntermediate, kPerToken);
  Device& device = kernels.device();
  std::vector<BenchWeight> memory;
  std::vector<MlpWeight> experts;
  const auto add = [&](int64_t rows, int64_t cols) {
    memory.push_back(
        random_weight(kernels, LinearFormat::kNvfp4, rows, cols, memory.size() + 1000));
    return memory.back().weight;
  };
  size_t expert_bytes = 0;
  for (int e = 0; e <= kExperts; ++e) {
    const LinearWeight gate = add(kIntermediate, kHidden);
    const LinearWeight up = add(kIntermediate, kHidden);
    const LinearWeight down = add(kHidden, kIntermediate);
    experts.push_back({gate, up, down});
  }
  for (size_t i = 0; i < 3; ++i) expert_bytes += memory[i].buffer.size();
  const MlpWeight shared = experts.back();
  const std::span<const MlpWeight> routed(experts.data(), kExperts);
  RouterShape shape;
  shape.n_routed_experts = kExperts;
  shape.num_experts_per_tok = kPerToken;

  for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 256, 2048, 4096, 8192}) {
    // Other experts each time; a graph's start is not the layer's.
    const int rounds = tokens <= 4 ? 48 : tokens <= 256 ? 8 : 1;
    std::vector<Choice> choices;
    double bytes = 0;
    for (int i = 0; i < rounds; ++i) {
      choices.push_back(choose(device, tokens, static_cast<uint32_t>(100 * tokens + i)));
      bytes += static_cast<double>((choices.back().distinct + 1) * expert_bytes) / rounds;
    }
    const Buffer x = device.allocate(static_cast<size_t>(tokens * kHidden) * 4).value();
    const Buffer out = device.allocate(static_cast<size_t>(tokens * kHidden) * 4).value();
    fill_normal(x.as<float>(), tokens * kHidden, 1, 7, cuda_stream(device));
    const MatrixView x_view{x.data(), DType::kF32, tokens, kHidden, kHidden};
    const MatrixView out_view{out.data(), DType::kF32, tokens, kHidden, kHidden};
    const Samples s = time_graph(device, [&] {
      for (const Choice& c : choices) {
        kernels.moe(x_view, routed, &shared, shape, c.ids.as<int32_t>(), c.weights.as<float>(),
                    out_view);
      }
    });
    const double us = s.median / rounds;
    const double rate = bytes / us / 1000;
    const double flops = 2e-6 * 3 * static_cast<double>(kHidden * kIntermediate) *
                         static_cast<double>(tokens * (kPerToken + 1)) / us;
    fmt::print(
        "tokens {:>4}, {:>3} experts: {:9.1f} us ({:.1f}..{:.1f})  {:5.0f} GB/s  {:5.1f} % of "
        "copy  {:6.1f} TFLOP/s\n",
        tokens, choices.back().distinct, us, s.min / rounds, s.max / rounds, rate,
        100 * rate / limits.copy, flops);
  }
}

}  // namespace nibble::bench
