// How long steps of one kind took, and how large they were.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace nibble {

// Counts of values below rising bounds; the last one is of those above all bounds.
template <size_t kNumBounds>
struct BucketCounts {
  std::array<int64_t, kNumBounds + 1> counts{};

  void add(const std::array<double, kNumBounds>& bounds, double value) {
    const auto bound = std::lower_bound(bounds.begin(), bounds.end(), value);
    ++counts[static_cast<size_t>(bound - bounds.begin())];
  }
};

// In seconds: from a small model's step to a long prefill of a large one on a CPU.
inline constexpr std::array<double, 18> kStepSecondsBounds = {
    .0005, .001, .0025, .005, .01, .025, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 120};
inline constexpr std::array<double, 18> kStepSizeBounds = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};

// Steps of one kind.
struct StepCount {
  int64_t steps = 0;
  double seconds = 0;
  int64_t tokens = 0;
  int64_t sequences = 0;
  BucketCounts<kStepSecondsBounds.size()> by_seconds;
  BucketCounts<kStepSizeBounds.size()> by_tokens;
  BucketCounts<kStepSizeBounds.size()> by_sequences;

  void add(double step_seconds, int64_t step_tokens, int64_t step_sequences) {
    ++steps;
    seconds += step_seconds;
    tokens += step_tokens;
    sequences += step_sequences;
    by_seconds.add(kStepSecondsBounds, step_seconds);
    by_tokens.add(kStepSizeBounds, static_cast<double>(step_tokens));
    by_sequences.add(kStepSizeBounds, static_cast<double>(step_sequences));
  }
};

}  // namespace nibble
