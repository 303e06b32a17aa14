// Kernels::linear at DeepSeek-R1's expert shape, 7168 -> 2048: packed GB/s and GFLOP/s beside the
// machine's limits, measured before and after each row. Weights are rotated over 400 MB, so that
// every product reads its weights from memory.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "bench/kernels/machine_limits.h"
#include "nibble/kernels/registry.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 2048;
constexpr int64_t kCols = 7168;
constexpr size_t kWeightBytes = size_t{400} << 20;

struct Format {
  const char* name;
  LinearFormat format;
  ActivationFormat activation;
};

struct Source {
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;
  HostLinear host;
};

Source random_source(LinearFormat format) {
  Source source;
  std::mt19937 rng(1);
  const auto count = static_cast<size_t>(kRows * kCols);
  size_t bytes = count / 2;
  if (format == LinearFormat::kFp8Block) bytes = count;
  if (format == LinearFormat::kBf16) bytes = 2 * count;
  for (size_t i = 0; i < bytes; ++i) {
    auto byte = static_cast<uint8_t>(rng());
    if (format == LinearFormat::kFp8Block && (byte & 0x7f) == 0x7f) byte = 0;
    // Exponents near 1: no infinities, no subnormals.
    if (format == LinearFormat::kBf16 && i % 2 == 1)
      byte = static_cast<uint8_t>(0x3e | (byte & 0x80));
    source.data.push_back(byte);
  }
  if (format == LinearFormat::kNvfp4) {
    for (size_t i = 0; i < count / 16; ++i)
      source.scales.push_back(static_cast<uint8_t>(rng() % 0x7f));
  } else if (format == LinearFormat::kFp8Block) {
    const std::vector<float> ones(count / 128 / 128, 1.0f);
    const auto* first = reinterpret_cast<const uint8_t*>(ones.data());
    source.scales.assign(first, first + ones.size() * sizeof(float));
  }
  source.host.format = format;
  source.host.rows = kRows;
  source.host.cols = kCols;
  source.host.data = source.data.data();
  source.host.scales = source.scales.data();
  source.host.global_scale = 1e-3f;
  source.host.input_scale = 4.0f / 2688;
  return source;
}

void report_limits(benchmark::State& state, int threads, const MachineLimits& before, double bytes,
                   double flops) {
  const MachineLimits after = measure_limits(threads);
  const double read = (before.read_gb_per_s + after.read_gb_per_s) / 2;
  const double peak = (before.gflops + after.gflops) / 2;
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] = Counter(bytes / 1e9 / read, Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] = Counter(flops / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["of_fma"] = Counter(flops / 1e9 / peak, Counter::kIsIterationInvariantRate);
  state.counters["read"] = read;
  state.counters["fma"] = peak;
}

void bench_linear(benchmark::State& state, Format format, Isa isa, int threads) {
  const int64_t tokens = state.range(0);
  KernelOptions options;
  options.isa = isa;
  options.threads = threads;
  auto kernels = make_kernels("cpu", options).value();
  const Source source = random_source(format.format);
  const size_t bytes = kernels->packed_bytes(format.format, kRows, kCols);
  const size_t stride = (bytes + 4095) / 4096 * 4096;
  const size_t copies = (kWeightBytes + stride - 1) / stride;
  Buffer memory = kernels->device().allocate(copies * stride).value();
  std::vector<LinearWeight> weights;
  for (size_t i = 0; i < copies; ++i) {
    weights.push_back(
        kernels->pack(source.host, format.activation, memory.as<char>() + i * stride).value());
  }
  std::vector<float> x(static_cast<size_t>(tokens * kCols));
  std::mt19937 rng(2);
  for (float& v : x) v = static_cast<float>(rng() % 2001) / 1000 - 1;
  std::vector<float> out(static_cast<size_t>(tokens * kRows));
  const MatrixView x_view{x.data(), DType::kF32, tokens, kCols, kCols};
  const MatrixView out_view{out.data(), DType::kF32, tokens, kRows, kRows};

  const MachineLimits before = measure_limits(threads);
  size_t next = 0;
  for (size_t i = 0; i < copies && tokens < 64; ++i) kernels->linear(x_view, weights[i], out_view);
  for (auto _ : state) {
    kernels->linear(x_view, weights[next], out_view);
    next = (next + 1) % copies;
  }
  report_limits(state, threads, before, static_cast<double>(bytes),
                2.0 * static_cast<double>(tokens * kRows * kCols));
}

void bench_pack(benchmark::State& state, Format format) {
  auto kernels = make_kernels("cpu").value();
  const Source source = random_source(format.format);
  const size_t bytes = kernels->packed_bytes(format.format, kRows, kCols);
  Buffer memory = kernels->device().allocate(bytes).value();
  for (auto _ : state) {
    benchmark::DoNotOptimize(kernels->pack(source.host, format.activation, memory.data()).value());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes));
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;  // NOLINT(google-build-using-namespace): this file's own names
  benchmark::Initialize(&argc, argv);
  const Format formats[] = {
      {"nvfp4", LinearFormat::kNvfp4, ActivationFormat::kUnquantized},
      {"nvfp4_w4a4", LinearFormat::kNvfp4, ActivationFormat::kNvfp4},
      {"fp8", LinearFormat::kFp8Block, ActivationFormat::kUnquantized},
      {"bf16", LinearFormat::kBf16, ActivationFormat::kUnquantized},
  };
  std::vector<int> thread_counts = {1};
  if (available_processors() > 1) thread_counts.push_back(available_processors());
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kPortable}) {
    if (isa > detected_isa()) continue;
    for (const Format& format : formats) {
      for (const int threads : thread_counts) {
        const std::string name = std::string("linear/") + format.name + "/" +
                                 std::string(isa_name(isa)) + "/threads:" + std::to_string(threads);
        auto* const registered =
            benchmark::RegisterBenchmark(name.c_str(), bench_linear, format, isa, threads);
        registered->Unit(benchmark::kMillisecond);
        for (const int tokens : {1, 8, 64, 256}) registered->Arg(tokens);
        if (threads > 1) registered->UseRealTime();
      }
    }
  }
  for (const Format& format : formats) {
    if (format.activation != ActivationFormat::kUnquantized) continue;
    benchmark::RegisterBenchmark((std::string("pack/") + format.name).c_str(), bench_pack, format)
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
