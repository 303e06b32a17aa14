// Absorbed MLA decode with R1's widths: the whole operation (absorption, attention, values), and
// the bytes of the cache that it reads.
#include <fmt/format.h>

#include <numeric>
#include <random>
#include <vector>

#include "bench/cuda/gpu_timing.h"
#include "bench/cuda/mla_operands.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

struct Case {
  int64_t heads, batch, context, query_tokens;
  DType cache = DType::kBf16;
};

}  // namespace

void bench_mla(Kernels& kernels, const Limits& limits) {
  fmt::print("\nMLA decode, blocks of 64 (absorption, attention, values)\n");
  Device& device = kernels.device();
  cudaStream_t stream = cuda_stream(device);
  for (const Case c : {Case{16, 1, 8192, 1},
                       {16, 16, 8192, 1},
                       {16, 64, 8192, 1},
                       {16, 16, 32768, 1},
                       {16, 16, 8192, 2},
                       {128, 1, 4096, 1},
                       {128, 16, 4096, 1},
                       {128, 64, 64, 1},
                       {128, 64, 8192, 1},
                       {128, 16, 8192, 4},
                       {128, 32, 4096, 1},
                       {32, 1, 4096, 1, DType::kF8E4m3},
                       {32, 8, 4096, 1, DType::kF8E4m3},
                       {32, 32, 4096, 1, DType::kF8E4m3},
                       {32, 128, 4096, 1, DType::kF8E4m3},
                       {16, 16, 8192, 1, DType::kF8E4m3},
                       {128, 1, 4096, 1, DType::kF8E4m3},
                       {128, 32, 8192, 1, DType::kF8E4m3}}) {
    const int64_t tokens = c.batch * c.query_tokens;
    const MlaOperands o = mla_operands(kernels, c.heads, tokens, stream);
    const bool is_fp8 = c.cache == DType::kF8E4m3;
    const int64_t entry_bytes = is_fp8 ? 576 : 1152;
    const int64_t blocks_each = c.context / kMlaBlockSize;
    const int64_t num_blocks = blocks_each * c.batch;
    Buffer cache;
    if (is_fp8) {
      std::vector<uint8_t> values(static_cast<size_t>(num_blocks * kMlaBlockSize * entry_bytes));
      std::mt19937 rng(3);
      for (uint8_t& value : values) value = static_cast<uint8_t>(rng() % 0x60);  // finite
      cache = on_device(device, values);
    } else {
      cache =
          device.allocate(static_cast<size_t>(num_blocks * kMlaBlockSize * entry_bytes)).value();
      fill_bf16(cache.data(), num_blocks * kMlaBlockSize * 576, 3, stream);
    }
    const KvCacheView view{cache.data(), c.cache, num_blocks, kMlaBlockSize, 576};
    std::vector<int32_t> table(static_cast<size_t>(num_blocks));
    std::iota(table.begin(), table.end(), 0);
    std::vector<AttentionSegment> segments;
    for (int64_t b = 0; b < c.batch; ++b) {
      segments.push_back({b * c.query_tokens, c.query_tokens, c.context - c.query_tokens,
                          table.data() + b * blocks_each, MlaForm::kAbsorbed});
    }
    const AttentionBatch batch{tokens, segments};
    const Samples s = time_graph(
        device, [&] { kernels.mla_attention(o.q, o.weight, o.shape, batch, view, o.out); });
    const double bytes = static_cast<double>(c.batch * c.context * entry_bytes);
    const double flops = static_cast<double>(tokens * c.context * c.heads) * 2 * (576 + 512);
    fmt::print(
        "{} heads {:>3}, batch {:>3}, context {:>6}, query tokens {}: {:9.1f} us ({:.1f}..{:.1f})  "
        "{:5.0f} GB/s  {:5.1f} % of copy  {:6.1f} TFLOP/s  {:5.1f} % of BF16\n",
        is_fp8 ? "FP8 " : "BF16", c.heads, c.batch, c.context, c.query_tokens, s.median, s.min,
        s.max, bytes / s.median / 1000, 100 * bytes / s.median / 1000 / limits.copy,
        flops / s.median * 1e-6,
        limits.gemm > 0 ? 100 * flops / s.median * 1e-6 / limits.gemm : 0.0);
  }
}

}  // namespace nibble::bench
