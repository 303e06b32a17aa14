// FP8 -> NVFP4 on one core, as nibble quantize does it between reading and writing: amax of a
// matrix from its codes, rows rounded to BF16, codes and scales. Bytes are those of the source; the
// source (2048 x 7168, an expert's up_proj of DeepSeek-R1) is cached. Limit: the memory's read
// rate, which the last line gives for the same process.
//
// Then what GPTQ adds, on one core: H of 256 tokens, its factors, and codes (bytes are those of an
// FP8 source). Limit: arithmetic; the counter is operations a second.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <random>
#include <vector>

#include "bench/kernels/machine_limits.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/gptq.h"
#include "nibble/quantize/hessian.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 2048;
constexpr int64_t kCols = 7168;
constexpr int64_t kChunkRows = 32;

struct Source {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  Source() : codes(kRows * kCols), scales(num_fp8_blocks(kRows) * num_fp8_blocks(kCols), 1e-4f) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal(0, 100);
    for (uint8_t& code : codes) code = float_to_e4m3(normal(rng));
  }
  Fp8BlockMatrix matrix() const { return {codes.data(), scales.data(), kRows, kCols}; }
};

void convert(benchmark::State& state, Nvfp4Mode mode, int64_t rows) {
  static const Source kSource;
  const Fp8BlockMatrix matrix = kSource.matrix();
  std::vector<float> values(kChunkRows * kCols);
  std::vector<uint8_t> packed(values.size() / 2);
  std::vector<uint8_t> scales(values.size() / kNvfp4BlockSize);
  std::vector<float> hessian(256, 0.1f);
  for (size_t i = 0; i < 16; ++i) hessian[17 * i] = 1;
  for (auto _ : state) {
    const float amax = fp8_block_rounded_amax(matrix, 0, rows);
    const float global = nvfp4_global_scale(amax, mode).value();
    for (int64_t r = 0; r < rows; r += kChunkRows) {
      (void)dequantize_fp8_block_rounded(matrix, r, r + kChunkRows, values.data());
      if (mode != Nvfp4Mode::kLocalHessian) {
        (void)quantize_nvfp4_rows(values.data(), kChunkRows, kCols, global, mode, packed.data(),
                                  scales.data());
        continue;
      }
      for (int64_t c = 0; c < kCols / kNvfp4BlockSize; ++c) {
        (void)quantize_nvfp4_block_column(
            {values.data() + c * kNvfp4BlockSize, kChunkRows, kCols, packed.data() + c * 8,
             kCols / 2, scales.data() + c, kCols / kNvfp4BlockSize},
            global, mode, hessian.data());
      }
    }
    benchmark::DoNotOptimize(packed.data());
  }
  state.SetBytesProcessed(state.iterations() * rows * kCols);
}

BENCHMARK_CAPTURE(convert, max, Nvfp4Mode::kMax, kRows)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(convert, 4over6, Nvfp4Mode::kFourOverSix, kRows)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(convert, mse, Nvfp4Mode::kMse, 64)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(convert, local_hessian, Nvfp4Mode::kLocalHessian, 64)
    ->Unit(benchmark::kMillisecond);

// Tokens of any module, seeded.
class RandomInputs final : public Activations {
 public:
  RandomInputs(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;
    values_.resize(static_cast<size_t>(rows * cols));
    for (float& v : values_) v = round_to_bf16(normal(rng));
  }
  std::optional<float> input_amax(std::string_view) const override { return 1.0f; }
  int64_t num_rows(std::string_view) const override { return rows_; }
  Status read_rows(std::string_view, int64_t first, int64_t count, float* out) const override {
    std::copy_n(values_.begin() + first * cols_, count * cols_, out);
    return {};
  }

 private:
  int64_t rows_;
  int64_t cols_;
  std::vector<float> values_;
};

using Counter = benchmark::Counter;

void hessian(benchmark::State& state) {
  const int64_t cols = state.range(0);
  constexpr int64_t kTokens = 256;
  const RandomInputs inputs(kTokens, cols);
  ThreadPool pool(1);
  for (auto _ : state) benchmark::DoNotOptimize(full_hessian(inputs, "m", cols, pool));
  const auto operations = static_cast<double>(kTokens * cols * cols);
  state.counters["operations"] = Counter(operations, Counter::kIsIterationInvariantRate);
}
BENCHMARK(hessian)->Arg(2048)->Arg(7168)->Arg(16384)->Unit(benchmark::kMillisecond);

// Factors once, and encodes all rows.
void gptq(benchmark::State& state, Nvfp4Mode mode, int64_t rows, int64_t cols) {
  ThreadPool pool(1);
  const RandomInputs inputs(512, cols);
  const auto sums = full_hessian(inputs, "m", cols, pool).value();
  const auto blocks = block_hessians(inputs, "m", cols, pool).value();
  const RandomInputs weights(rows, cols);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  (void)weights.read_rows("", 0, rows, values.data());
  const float global = nvfp4_global_scale(nvfp4_amax(values).value(), mode).value();
  std::vector<uint8_t> packed(values.size() / 2);
  std::vector<uint8_t> scales(values.size() / kNvfp4BlockSize);
  double factoring = 0;
  for (auto _ : state) {
    auto factors = sums;
    const auto start = std::chrono::steady_clock::now();
    factor_hessian(&factors, cols, pool);
    factoring += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    (void)quantize_gptq({values.data(), rows, cols, factors.data(), blocks.data()}, global, mode,
                        packed.data(), scales.data(), pool);
    benchmark::DoNotOptimize(packed.data());
  }
  state.SetBytesProcessed(state.iterations() * rows * cols);
  state.counters["s_factoring"] = factoring / static_cast<double>(state.iterations());
}
BENCHMARK_CAPTURE(gptq, max_expert, Nvfp4Mode::kMax, 2048, 7168)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(gptq, mse_expert, Nvfp4Mode::kMse, 2048, 7168)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(gptq, local_hessian_expert, Nvfp4Mode::kLocalHessian, 2048, 7168)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(gptq, max_down, Nvfp4Mode::kMax, 7168, 2048)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(gptq, max_o_proj, Nvfp4Mode::kMax, 7168, 16384)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

void read_rate(benchmark::State& state) {
  double rate = 0;
  for (auto _ : state) rate = std::max(rate, measure_limits(1).read_gb_per_s);
  state.counters["read_GB_per_s"] = rate;
}
BENCHMARK(read_rate)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace nibble

BENCHMARK_MAIN();
