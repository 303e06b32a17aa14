// Products of few tokens with one matrix, from memory: matrices are rotated over more than 4 x L2.
#include <fmt/format.h>

#include <algorithm>

#include "bench/cuda/gpu_timing.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

constexpr size_t kColdBytes = size_t{400} << 20;
// In a graph: what starting it takes (some 40 us) is not a matrix's.
constexpr int kLaunches = 96;

// Each number of tokens with x in binary32 alone, and with a BF16 copy as a norm leaves it in the
// model.
std::vector<std::pair<int64_t, bool>> with_copies(std::initializer_list<int64_t> token_counts) {
  std::vector<std::pair<int64_t, bool>> all;
  for (const int64_t tokens : token_counts) {
    all.emplace_back(tokens, false);
    all.emplace_back(tokens, true);
  }
  return all;
}

void bench_shape(Kernels& kernels, const Limits& limits, LinearFormat format, int64_t rows,
                 int64_t cols, std::initializer_list<int64_t> token_counts) {
  Device& device = kernels.device();
  const size_t bytes = kernels.packed_bytes(format, rows, cols);
  const auto copies = static_cast<int>(std::max<size_t>(2, (kColdBytes + bytes - 1) / bytes));
  std::vector<BenchWeight> weights;
  weights.reserve(static_cast<size_t>(copies));
  for (int i = 0; i < copies; ++i) {
    weights.push_back(random_weight(kernels, format, rows, cols, static_cast<uint64_t>(i) + 10));
  }
  const Buffer ones = on_device(device, std::vector<float>(static_cast<size_t>(cols), 1));
  constexpr int64_t kMostCopied = 512;
  for (const auto& [tokens, with_copy] : with_copies(token_counts)) {
    const bool copied = with_copy;
    if (copied && tokens > kMostCopied) continue;
    const Buffer x = device.allocate(static_cast<size_t>(tokens * cols) * 4).value();
    const Buffer out = device.allocate(static_cast<size_t>(tokens * rows) * 4).value();
    fill_normal(x.as<float>(), tokens * cols, 1, 5, cuda_stream(device));
    const MatrixView x_view{x.data(), DType::kF32, tokens, cols, cols};
    const MatrixView out_view{out.data(), DType::kF32, tokens, rows, rows};
    const int rounds = (kLaunches + copies - 1) / copies;
    const int launches = rounds * copies;
    const Buffer normed = device.allocate(static_cast<size_t>(tokens * cols) * 4).value();
    const MatrixView normed_view{normed.data(), DType::kF32, tokens, cols, cols};
    const Samples s = time_graph(device, [&] {
      // One launch in front of all products, which leaves its result in BF16, too.
      if (copied) kernels.rms_norm(x_view, ones.as<float>(), 1e-6F, normed_view);
      for (int i = 0; i < rounds; ++i) {
        for (const BenchWeight& w : weights) {
          kernels.linear(copied ? normed_view : x_view, w.weight, out_view);
        }
      }
    });
    const double us = s.median / launches;
    const double rate = static_cast<double>(bytes) / us / 1000;
    const double flops = 2e-6 * static_cast<double>(rows * cols) * static_cast<double>(tokens) / us;
    fmt::print(
        "{:>6} [{:>5}, {:>5}] x {:>4}: {:8.2f} us ({:.2f}..{:.2f})  {:6.0f} GB/s  {:5.1f} % of "
        "copy  {:6.1f} TFLOP/s{}\n",
        format == LinearFormat::kNvfp4  ? "NVFP4"
        : format == LinearFormat::kBf16 ? "BF16"
                                        : "FP8",
        rows, cols, tokens, us, s.min / launches, s.max / launches, rate, 100 * rate / limits.copy,
        flops, copied ? "  x in BF16, too" : "");
  }
}

}  // namespace

void bench_linear(Kernels& kernels, const Limits& limits) {
  fmt::print(
      "\nlinear (bytes of weights only; with the conversion of x unless it is in BF16, too)\n");
  const auto few = {int64_t{1},  int64_t{2},  int64_t{4}, int64_t{8},
                    int64_t{16}, int64_t{32}, int64_t{64}};
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16384, 7168},
                                   {18432, 7168},
                                   {7168, 18432},
                                   {7168, 16384},
                                   {2048, 7168},
                                   {7168, 2048},
                                   {24576, 1536}}) {
    bench_shape(kernels, limits, LinearFormat::kNvfp4, rows, cols, few);
  }
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1536, 7168}, {576, 7168}, {24576, 1536}, {7168, 16384}}) {
    bench_shape(kernels, limits, LinearFormat::kBf16, rows, cols, {1, 8, 16, 64});
  }
  bench_shape(kernels, limits, LinearFormat::kFp8Block, 7168, 16384, {1, 8, 16});
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{18432, 7168}, {7168, 18432}}) {
    bench_shape(kernels, limits, LinearFormat::kNvfp4, rows, cols, {2048, 8192});
  }
}

}  // namespace nibble::bench
