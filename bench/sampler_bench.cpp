// One draw from a row of DeepSeek-R1's 129,280 logits, one core: the whole of Sampler::sample.
//
//   cmake --preset cpu -DNIBBLE_BENCH=ON && ninja -C build/cpu bench_sampler
//   build/cpu/bench/bench_sampler
//
// "peaked" is like a trained model's row (the best token has about half the mass), "flat" like
// that of an untrained one: all probabilities within a factor of 3.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "nibble/engine/logits_processor.h"
#include "nibble/engine/logprobs.h"
#include "nibble/engine/sampler.h"

namespace nibble {
namespace {

constexpr size_t kVocab = 129280;

std::vector<float> row(bool flat) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = flat ? 0.2F * normal(rng) : 2.5F * normal(rng);
  if (!flat) {
    for (int i = 0; i < 30; ++i) logits[rng() % kVocab] = 22 - 0.6F * static_cast<float>(i);
  }
  return logits;
}

void run_sampler(benchmark::State& state, const SamplingParams& params, bool flat) {
  const std::vector<float> logits = row(flat);
  Sampler sampler;
  int64_t position = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sampler.sample(logits, params, position++).value());
  }
}

SamplingParams params_of(double temperature, double top_p, int64_t top_k) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_p = top_p;
  params.top_k = top_k;
  return params;
}

BENCHMARK_CAPTURE(run_sampler, greedy, params_of(0, 1, 0), false)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_sampler, plain, params_of(0.6, 1, 0), false)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_sampler, top_p_95, params_of(0.6, 0.95, 0), false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_sampler, top_k_50_top_p_95, params_of(0.6, 0.95, 50), false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_sampler, flat_top_p_95, params_of(0.6, 0.95, 0), true)
    ->Unit(benchmark::kMicrosecond);

void BM_LogitsProcessor(benchmark::State& state) {
  SamplingParams params;
  params.repetition_penalty = 1.1;
  const auto processor = LogitsProcessor::create(params, {.vocab_size = kVocab}).value();
  std::vector<int32_t> prompt(4000);
  std::mt19937 rng(2);
  for (int32_t& id : prompt) id = static_cast<int32_t>(rng() % kVocab);
  const TokenCounts counts = processor.make_counts(prompt);
  std::vector<float> logits = row(false);
  TokenMask mask(kVocab);
  for (int64_t id = 0; id < 60000; ++id) mask.allow(id);
  for (auto _ : state) {
    benchmark::DoNotOptimize(processor.apply(logits, counts, 5, &mask).has_value());
  }
}
BENCHMARK(BM_LogitsProcessor)->Unit(benchmark::kMicrosecond);

void BM_Logprobs20(benchmark::State& state) {
  const std::vector<float> logits = row(false);
  for (auto _ : state) benchmark::DoNotOptimize(logprobs(logits, 7, 20).value().chosen.logprob);
}
BENCHMARK(BM_Logprobs20)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace nibble

BENCHMARK_MAIN();
