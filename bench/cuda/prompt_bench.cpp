// Attention of one prompt's chunk with R1's widths, as it is (expanded where
// mla_prompt_pays()) and absorbed, as generated tokens are; FLOP are those of the form.
#include <fmt/format.h>

#include <numeric>
#include <vector>

#include "bench/cuda/gpu_timing.h"
#include "bench/cuda/mla_operands.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

struct Case {
  int64_t heads, prefix, tokens;
};

}  // namespace

void bench_prompts(Kernels& kernels, const Limits& limits) {
  fmt::print("\nMLA of a prompt's chunk behind a prefix, blocks of 64, BF16 cache\n");
  Device& device = kernels.device();
  cudaStream_t stream = cuda_stream(device);
  for (const Case c : {Case{128, 0, 64},
                       {128, 0, 128},
                       {128, 0, 512},
                       {128, 0, 2048},
                       {128, 0, 8192},
                       {128, 8192, 64},
                       {128, 8192, 128},
                       {128, 8192, 256},
                       {128, 8192, 2048},
                       {128, 32768, 128},
                       {128, 32768, 288},
                       {128, 32768, 2048},
                       {32, 0, 128},
                       {32, 0, 2048},
                       {32, 8192, 128},
                       {32, 8192, 2048}}) {
    const MlaOperands o = mla_operands(kernels, c.heads, c.tokens, stream);
    const int64_t num_blocks = (c.prefix + c.tokens + kMlaBlockSize - 1) / kMlaBlockSize;
    const Buffer cache =
        device.allocate(static_cast<size_t>(num_blocks * kMlaBlockSize * 576 * 2)).value();
    fill_bf16(cache.data(), num_blocks * kMlaBlockSize * 576, 3, stream);
    const KvCacheView view{cache.data(), DType::kBf16, num_blocks, kMlaBlockSize, 576};
    std::vector<int32_t> table(static_cast<size_t>(num_blocks));
    std::iota(table.begin(), table.end(), 0);
    const double pairs = static_cast<double>(c.heads * c.tokens) *
                         (static_cast<double>(c.prefix) + static_cast<double>(c.tokens + 1) / 2);
    const auto measure = [&](MlaForm form) {
      const std::vector<AttentionSegment> segments = {{0, c.tokens, c.prefix, table.data(), form}};
      const AttentionBatch batch{c.tokens, segments};
      const Samples s = time_launches(
          device, [&] { kernels.mla_attention(o.q, o.weight, o.shape, batch, view, o.out); }, 2);
      const double flops = pairs * (form == MlaForm::kExpanded ? 2 * (192 + 128) : 2 * (576 + 512));
      return fmt::format("{:9.1f} us ({:.1f}..{:.1f}), {:6.1f} TFLOP/s, {:5.1f} % of BF16",
                         s.median, s.min, s.max, flops / s.median * 1e-6,
                         limits.gemm > 0 ? 100 * flops / s.median * 1e-6 / limits.gemm : 0.0);
    };
    fmt::print("heads {:>3}, prefix {:>6}, tokens {:>5}: as it is {}; absorbed {}\n", c.heads,
               c.prefix, c.tokens, measure(MlaForm::kExpanded), measure(MlaForm::kAbsorbed));
  }
}

}  // namespace nibble::bench
