// Kernels::linear on DeepSeek-R1's shapes: packed GB/s and GOP/s beside the machine's limits,
// measured before and after each row. Weights are rotated over 400 MB, so that every product reads
// its weights from memory.
//
//   bench_linear --benchmark_filter='nvfp4/avx512vnni/2048x7168/threads:1'
//
// of_read is the share of the read bandwidth, of_peak that of the instruction that multiplies
// (16-bit products for NVFP4 weights, 8-bit ones when activations are quantized, else FMAs; at the
// level of AMX tiles of BF16 with operands in L1; nvfp4_exact there needs two products for each
// that is counted).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/kernels/machine_limits.h"
#include "nibble/kernels/registry.h"

namespace nibble {
namespace {

constexpr size_t kWeightBytes = size_t{400} << 20;

struct Format {
  const char* name;
  LinearFormat format;
  ActivationFormat activation;
  double MachineLimits::*peak;
  bool int8_activations = false;
  bool exact_activations = false;
};

struct Shape {
  int64_t rows;
  int64_t cols;
};

struct Source {
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;
  HostLinear host;
};

Source random_source(LinearFormat format, Shape shape) {
  Source source;
  std::mt19937_64 rng(1);
  const auto count = static_cast<size_t>(shape.rows * shape.cols);
  size_t bytes = count / 2;
  if (format == LinearFormat::kFp8Block) bytes = count;
  if (format == LinearFormat::kBf16) bytes = 2 * count;
  source.data.resize(bytes);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word = rng();
    // No NaN: neither exponent nor fraction is all ones.
    if (format == LinearFormat::kFp8Block) word &= 0xbfbfbfbfbfbfbfbf;
    // Exponents near 1: no infinities, no subnormals.
    if (format == LinearFormat::kBf16) word = (word & 0x80ff80ff80ff80ff) | 0x3e003e003e003e00;
    std::memcpy(&source.data[i], &word, sizeof(word));
  }
  if (format == LinearFormat::kNvfp4) {
    source.scales.resize(count / 16);
    for (uint8_t& scale : source.scales) scale = static_cast<uint8_t>(rng() % 0x7f);
  } else if (format == LinearFormat::kFp8Block) {
    const std::vector<float> ones(
        static_cast<size_t>((shape.rows + 127) / 128 * (shape.cols / 128)), 1.0f);
    const auto* first = reinterpret_cast<const uint8_t*>(ones.data());
    source.scales.assign(first, first + ones.size() * sizeof(float));
  }
  source.host.format = format;
  source.host.rows = shape.rows;
  source.host.cols = shape.cols;
  source.host.data = source.data.data();
  source.host.scales = source.scales.data();
  source.host.global_scale = 1e-3f;
  source.host.input_scale = 4.0f / 2688;
  return source;
}

void report_limits(benchmark::State& state, int threads, double MachineLimits::*peak_of,
                   const MachineLimits& before, double bytes, double operations) {
  const MachineLimits after = measure_limits(threads);
  const double read = (before.read_gb_per_s + after.read_gb_per_s) / 2;
  const double peak = (before.*peak_of + after.*peak_of) / 2;
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] = Counter(bytes / 1e9 / read, Counter::kIsIterationInvariantRate);
  state.counters["GOP/s"] = Counter(operations / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = Counter(operations / 1e9 / peak, Counter::kIsIterationInvariantRate);
  state.counters["read"] = read;
  state.counters["peak"] = peak;
}

void bench_linear(benchmark::State& state, Format format, Shape shape, Isa isa, int threads) {
  const int64_t tokens = state.range(0);
  KernelOptions options;
  options.isa = isa;
  options.threads = threads;
  options.cpu_int8_activations = format.int8_activations;
  options.cpu_exact_activations = format.exact_activations;
  auto kernels = make_kernels("cpu", options).value();
  const Source source = random_source(format.format, shape);
  const size_t bytes = kernels->packed_bytes(format.format, shape.rows, shape.cols);
  const size_t stride = (bytes + 4095) / 4096 * 4096;
  const size_t copies = (kWeightBytes + stride - 1) / stride;
  Buffer memory = kernels->device().allocate(copies * stride).value();
  std::vector<LinearWeight> weights;
  for (size_t i = 0; i < copies; ++i) {
    char* const place = memory.as<char>() + i * stride;
    if (i == 0) {
      weights.push_back(kernels->pack(source.host, format.activation, place).value());
      continue;
    }
    std::memcpy(place, memory.data(), bytes);
    weights.push_back(weights[0]);
    weights.back().data = place;
    if (weights[0].scales != nullptr) {
      weights.back().scales =
          place + (static_cast<const char*>(weights[0].scales) - memory.as<char>());
    }
  }
  std::vector<float> x(static_cast<size_t>(tokens * shape.cols));
  std::mt19937 rng(2);
  for (float& v : x) v = static_cast<float>(rng() % 2001) / 1000 - 1;
  std::vector<float> out(static_cast<size_t>(tokens * shape.rows));
  const MatrixView x_view{x.data(), DType::kF32, tokens, shape.cols, shape.cols};
  const MatrixView out_view{out.data(), DType::kF32, tokens, shape.rows, shape.rows};

  const bool tiles = isa >= Isa::kAmx && format.activation == ActivationFormat::kUnquantized;
  if (tiles) format.peak = &MachineLimits::amx_gflops;
  const MachineLimits before = measure_limits(threads);
  size_t next = 0;
  for (size_t i = 0; i < copies && tokens < 64; ++i) kernels->linear(x_view, weights[i], out_view);
  for (auto _ : state) {
    kernels->linear(x_view, weights[next], out_view);
    next = (next + 1) % copies;
  }
  report_limits(state, threads, format.peak, before, static_cast<double>(bytes),
                2.0 * static_cast<double>(tokens * shape.rows * shape.cols));
}

void bench_pack(benchmark::State& state, Format format) {
  auto kernels = make_kernels("cpu").value();
  const Source source = random_source(format.format, {2048, 7168});
  const size_t bytes = kernels->packed_bytes(format.format, 2048, 7168);
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
  const bool integers = measure_limits(1).int16_gops > 0;
  double MachineLimits::*const int16 =
      integers ? &MachineLimits::int16_gops : &MachineLimits::fma_gflops;
  double MachineLimits::*const int8 =
      integers ? &MachineLimits::int8_gops : &MachineLimits::fma_gflops;
  const Format formats[] = {
      {"nvfp4", LinearFormat::kNvfp4, ActivationFormat::kUnquantized, int16},
      {"nvfp4_exact", LinearFormat::kNvfp4, ActivationFormat::kUnquantized, int16, false, true},
      {"nvfp4_w4a4", LinearFormat::kNvfp4, ActivationFormat::kNvfp4, int8},
      {"nvfp4_w4a8", LinearFormat::kNvfp4, ActivationFormat::kUnquantized, int8, true},
      {"fp8", LinearFormat::kFp8Block, ActivationFormat::kUnquantized, &MachineLimits::fma_gflops},
      {"bf16", LinearFormat::kBf16, ActivationFormat::kUnquantized, &MachineLimits::fma_gflops},
  };
  // An expert gate and down, q_b_proj, o_proj, dense gate and down, lm_head.
  const Shape shapes[] = {{2048, 7168},  {7168, 2048},  {24576, 1536}, {7168, 16384},
                          {18432, 7168}, {7168, 18432}, {129280, 7168}};
  std::vector<int> thread_counts = {1};
  if (available_processors() > 1) thread_counts.push_back(available_processors());
  for (const Isa isa : kAllIsas) {
    if (isa > detected_isa()) continue;
    for (const Format& format : formats) {
      if (format.exact_activations && isa < Isa::kAmx) continue;
      if (format.int8_activations && isa >= Isa::kAmx) continue;
      for (const Shape& shape : shapes) {
        for (const int threads : thread_counts) {
          const std::string name = std::string(format.name) + "/" + std::string(isa_name(isa)) +
                                   "/" + std::to_string(shape.rows) + "x" +
                                   std::to_string(shape.cols) +
                                   "/threads:" + std::to_string(threads);
          auto* const registered =
              benchmark::RegisterBenchmark(name.c_str(), bench_linear, format, shape, isa, threads);
          registered->Unit(benchmark::kMillisecond);
          for (const int tokens : {1, 2, 4, 8, 16, 64, 256, 1024}) registered->Arg(tokens);
          if (threads > 1) registered->UseRealTime();
        }
      }
    }
  }
  for (const Format& format : formats) {
    if (format.activation != ActivationFormat::kUnquantized) continue;
    if (format.exact_activations || format.int8_activations) continue;
    benchmark::RegisterBenchmark((std::string("pack/") + format.name).c_str(), bench_pack, format)
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
