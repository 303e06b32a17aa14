// A slice of R1 at its true widths: as many MoE layers as fit, weights of random bits made on the
// device (attention BF16, experts NVFP4, as in NVIDIA's first R1 checkpoint), run by model/forward.
#include <fmt/format.h>

#include <cstdlib>
#include <numeric>
#include <random>

#include "bench/cuda/gpu_timing.h"
#include "bench/cuda/r1_model.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/model/forward.h"

namespace nibble::bench {
namespace {

constexpr int kLayers = 16;
constexpr int kR1Layers = 61;
constexpr int64_t kContext = 4096;
constexpr int64_t kBlockSize = 64;

// The roofline of one layer in ms at this batch: bytes over the copy bandwidth (spec kernels 1.7).
double floor_ms(int64_t tokens, int64_t sequences, const Limits& limits) {
  double distinct = 256;
  double untouched = 1;
  for (int64_t t = 0; t < tokens; ++t) untouched *= 31.0 / 32;
  distinct *= 1 - untouched;
  const double bytes =
      (distinct + 1) * 24.77e6 + 374e6 + 3.7e6 + static_cast<double>(sequences * kContext) * 1152;
  return bytes / limits.copy / 1e6;
}

}  // namespace

void bench_layers(Kernels& kernels, const Limits& limits) {
  Device& device = kernels.device();
  R1Options options;
  options.dense_layers = 0;
  options.moe_layers = kLayers;
  options.with_mtp = false;
  options.o_proj = LinearFormat::kBf16;
  const ModelConfig config = r1_config(options);
  const R1Model slice(kernels, options);
  const DeviceMemory memory = device.memory().value();
  fmt::print(
      "\nR1's widths, {} MoE layers of {}, context {}, BF16 attention and cache; {:.1f} GB of "
      "{:.1f} GB in use\n",
      kLayers, kR1Layers, kContext,
      static_cast<double>(memory.total_bytes - memory.free_bytes) / 1e9,
      static_cast<double>(memory.total_bytes) / 1e9);
  struct Case {
    int64_t batch, query_tokens;
  };
  for (const Case c : {Case{1, 1}, {1, 2}, {1, 4}, {8, 1}, {8, 2}, {32, 1}, {128, 1}}) {
    const int64_t tokens = c.batch * c.query_tokens;
    const int64_t blocks_each = kContext / kBlockSize;
    const int64_t num_blocks = blocks_each * c.batch;
    std::vector<Buffer> pages;
    std::vector<KvCacheView> caches;
    for (int i = 0; i < kLayers; ++i) {
      pages.push_back(
          device.allocate(static_cast<size_t>(num_blocks * kBlockSize * 576) * 2).value());
      fill_bf16(pages.back().data(), num_blocks * kBlockSize * 576, 3, cuda_stream(device));
      caches.push_back({pages.back().data(), DType::kBf16, num_blocks, kBlockSize, 576});
    }
    Workspace workspace = Workspace::create(config, kernels, tokens).value();
    std::vector<int32_t> table(static_cast<size_t>(num_blocks));
    std::iota(table.begin(), table.end(), 0);
    std::vector<AttentionSegment> segments;
    for (int64_t b = 0; b < c.batch; ++b) {
      segments.push_back({b * c.query_tokens, c.query_tokens, kContext - c.query_tokens,
                          table.data() + b * blocks_each, MlaForm::kAbsorbed});
    }
    std::mt19937 rng(5);
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 129280);
    const Batch batch{ids, AttentionBatch{tokens, segments}};
    const auto step = [&] {
      const Status done = forward(config, slice.weights(), batch, caches, kernels, workspace,
                                  workspace.normed.slice_rows(0, tokens));
      if (!done) {
        fmt::print(stderr, "bench_cuda: {}\n", done.error().message);
        std::exit(1);
      }
    };
    const Samples graph = time_graph(device, step);
    const Samples launches = time_launches(device, step, 2);
    const double ms = graph.median / 1000 / kLayers;
    const double bound = floor_ms(tokens, c.batch, limits);
    fmt::print(
        "batch {:>3} x {} query tokens: {:7.3f} ms a layer as a graph ({:.3f}..{:.3f}), {:7.3f} "
        "without; bound {:.3f} ({:.0f} %); 61 such layers, extrapolated: {:.1f} ms a step\n",
        c.batch, c.query_tokens, ms, graph.min / 1000 / kLayers, graph.max / 1000 / kLayers,
        launches.median / 1000 / kLayers, bound, 100 * bound / ms, ms * kR1Layers);
  }
}

}  // namespace nibble::bench
