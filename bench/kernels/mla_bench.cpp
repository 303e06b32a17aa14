// Kernels::mla_attention for one generated token (absorbed form) on a BF16 cache, and for prompts
// (expanded form), with R1's head sizes. GB/s counts the cache and kv_b_proj once, of_read its
// share of the read bandwidth; GFLOP/s counts 2 (576 + 512) operations a head and position
// (absorbed), or 2 (192 + 128) for every visible pair (expanded), of_fma their share of FMAs,
// of_amx of what tiles reach from L1; GFLOP/s+ and of_amx+ count the products with kv_b_proj too.
// "exact": two BF16 numbers each, where tiles are used.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/kernels/machine_limits.h"
#include "nibble/kernels/registry.h"

namespace nibble {
namespace {

constexpr int64_t kBlockSize = 32;

struct Case {
  int64_t heads;
  MlaForm form;
  int threads;
  bool exact;
};

void bench_mla(benchmark::State& state, Case c) {
  const int64_t context = state.range(0);
  KernelOptions options;
  options.threads = c.threads;
  options.cpu_exact_activations = c.exact;
  auto kernels = make_kernels("cpu", options).value();
  const MlaShape shape = {c.heads, 512, 128, 64, 128, 0.1352f};
  std::mt19937 rng(1);
  const auto bf16 = [&](size_t count) {
    std::vector<uint16_t> values(count);
    for (uint16_t& v : values) v = static_cast<uint16_t>((rng() & 0x807f) | 0x3d00);
    return values;
  };
  const std::vector<uint16_t> kv_b = bf16(static_cast<size_t>(c.heads * 256 * 512));
  const HostLinear host = {LinearFormat::kBf16, c.heads * 256, 512, kv_b.data(), nullptr, 1, 1};
  Buffer packed =
      kernels->device().allocate(kernels->packed_mla_up_bytes(LinearFormat::kBf16, shape)).value();
  const MlaUpWeight weight = kernels->pack_mla_up(host, shape, packed.data()).value();

  const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
  std::vector<uint16_t> cache = bf16(static_cast<size_t>(blocks * kBlockSize * shape.entry_size()));
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  const KvCacheView view = {cache.data(), DType::kBf16, blocks, kBlockSize, shape.entry_size()};
  const int64_t tokens = c.form == MlaForm::kAbsorbed ? 1 : context;
  const AttentionSegment segment = {0, tokens, context - tokens, table.data(), c.form, 0};
  const AttentionBatch batch = {tokens, std::span(&segment, 1)};
  std::vector<float> q(static_cast<size_t>(tokens * c.heads * shape.qk_head_dim()));
  for (float& v : q) v = static_cast<float>(rng() % 2001) / 1000 - 1;
  std::vector<float> out(static_cast<size_t>(tokens * c.heads * shape.v_head_dim));
  const MatrixView q_view{q.data(), DType::kF32, tokens, c.heads * shape.qk_head_dim(),
                          c.heads * shape.qk_head_dim()};
  const MatrixView out_view{out.data(), DType::kF32, tokens, c.heads * shape.v_head_dim,
                            c.heads * shape.v_head_dim};

  const MachineLimits before = measure_limits(c.threads);
  for (auto _ : state) kernels->mla_attention(q_view, weight, shape, batch, view, out_view);
  const MachineLimits after = measure_limits(c.threads);
  const double read = (before.read_gb_per_s + after.read_gb_per_s) / 2;
  const double fma = (before.fma_gflops + after.fma_gflops) / 2;
  const double amx = (before.amx_gflops + after.amx_gflops) / 2;
  const double gigabytes =
      1e-9 * static_cast<double>(context * shape.entry_size() * 2 + c.heads * 256 * 512 * 2);
  const auto pairs = static_cast<double>(
      c.heads * (c.form == MlaForm::kAbsorbed ? context : context * (context + 1) / 2));
  const double operations = 2e-9 * pairs * (c.form == MlaForm::kAbsorbed ? 576 + 512 : 192 + 128);
  const double with_kv_b =
      operations + 2e-9 * static_cast<double>(c.heads * 256 * 512 *
                                              (c.form == MlaForm::kAbsorbed ? 1 : context));
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(gigabytes, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] = Counter(gigabytes / read, Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] = Counter(operations, Counter::kIsIterationInvariantRate);
  state.counters["of_fma"] = Counter(operations / fma, Counter::kIsIterationInvariantRate);
  if (amx > 0) {
    state.counters["of_amx"] = Counter(operations / amx, Counter::kIsIterationInvariantRate);
    state.counters["GFLOP/s+"] = Counter(with_kv_b, Counter::kIsIterationInvariantRate);
    state.counters["of_amx+"] = Counter(with_kv_b / amx, Counter::kIsIterationInvariantRate);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;  // NOLINT(google-build-using-namespace): this file's own names
  benchmark::Initialize(&argc, argv);
  std::vector<int> thread_counts = {1};
  if (available_processors() > 1) thread_counts.push_back(available_processors());
  std::vector<std::pair<int, bool>> runs;
  for (const int threads : thread_counts) {
    runs.emplace_back(threads, false);
    if (detected_isa() == Isa::kAmx) runs.emplace_back(threads, true);
  }
  for (const int64_t heads : {16, 128}) {
    for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
      for (const auto& [threads, exact] : runs) {
        const bool decode = form == MlaForm::kAbsorbed;
        const std::string name = std::string("mla/") + (decode ? "decode" : "prefill") +
                                 "/heads:" + std::to_string(heads) +
                                 "/threads:" + std::to_string(threads) + (exact ? "/exact" : "");
        auto* const registered = benchmark::RegisterBenchmark(name.c_str(), bench_mla,
                                                              Case{heads, form, threads, exact});
        registered->Unit(benchmark::kMillisecond);
        const std::vector<int64_t> contexts =
            decode ? std::vector<int64_t>{4096, 32768, 163840} : std::vector<int64_t>{512, 4096};
        for (const int64_t context : contexts) registered->Arg(context);
        if (threads > 1) registered->UseRealTime();
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
