// The passes over a whole row of logits, written so that the compiler makes vectors of them: lanes
// are explicit, because without fast-math it may not reorder a float sum or maximum itself.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/engine/sampler.h"

namespace nibble {
namespace {

constexpr size_t kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Extremes {
  float peak = -kInfinity;
  bool has_bad = false;  // NaN or +inf
};

Extremes extremes(std::span<const float> logits) {
  std::array<float, kLanes> peaks;
  peaks.fill(-kInfinity);
  std::array<uint32_t, kLanes> bad = {};
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = logits[i + lane];
      peaks[lane] = value > peaks[lane] ? value : peaks[lane];
      bad[lane] |= value < kInfinity ? 0U : 1U;
    }
  }
  Extremes result;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    result.peak = std::max(result.peak, peaks[lane]);
    result.has_bad |= bad[lane] != 0;
  }
  for (size_t i = whole; i < logits.size(); ++i) {
    result.peak = std::max(result.peak, logits[i]);
    result.has_bad |= !(logits[i] < kInfinity);
  }
  return result;
}

tl::unexpected<Error> bad_logit(std::span<const float> logits) {
  size_t i = 0;
  while (logits[i] < kInfinity) ++i;
  return corrupt(fmt::format("the logit of token {} is {}", i, logits[i]));
}

// exp(x) for x <= 0, within 2 units in the last place; 0 from about -87.7 down, where results turn
// denormal. x = n ln 2 + r with |r| <= ln 2 / 2. Source of the constants: Cephes expf.
inline float exp_not_positive(float x) {
  constexpr float kRound = 12582912.0F;   // 1.5 * 2^23: adding it rounds to a whole number
  constexpr int32_t kFloor = 0x42B00000;  // the bits of 88: there n is -127, and 2^n below is 0
  // max(x, -88) in whole numbers: a comparison of floats may trap, and would keep the loop scalar.
  const int32_t magnitude = std::bit_cast<int32_t>(x) & 0x7FFFFFFF;
  const float clamped = -std::bit_cast<float>(magnitude < kFloor ? magnitude : kFloor);
  const float shifted = clamped * 1.44269504088896341F + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  float poly = 1.9875691500e-4F;
  poly = poly * r + 1.3981999507e-3F;
  poly = poly * r + 8.3334519073e-3F;
  poly = poly * r + 4.1665795894e-2F;
  poly = poly * r + 1.6666665459e-1F;
  poly = poly * r + 5.0000001201e-1F;
  const float value = poly * r * r + r + 1.0F;
  // The low bits of `shifted` are n; 2^n is its exponent field.
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) + 127U) << 23;
  return value * std::bit_cast<float>(power);
}

}  // namespace

Status check_logits(std::span<const float> logits) {
  if (extremes(logits).has_bad) return bad_logit(logits);
  return {};
}

Result<int32_t> argmax(std::span<const float> logits) {
  const Extremes found = extremes(logits);
  if (found.has_bad) return bad_logit(logits);
  if (found.peak == -kInfinity) return corrupt("no token has a finite logit");
  const auto best = std::find(logits.begin(), logits.end(), found.peak);
  return static_cast<int32_t>(best - logits.begin());
}

double softmax_weights(std::span<const float> logits, float peak, float temperature,
                       std::span<float> out) {
  const size_t size = logits.size();
  const float* const in = logits.data();
  float* const to = out.data();
  for (size_t i = 0; i < size; ++i) to[i] = exp_not_positive((in[i] - peak) / temperature);
  return sum_weights(out);
}

double sum_weights(std::span<const float> weights) {
  const size_t size = weights.size();
  const float* const in = weights.data();
  std::array<double, kLanes> sums = {};
  const size_t whole = size / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(in[i + lane]);
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  for (size_t i = whole; i < size; ++i) sum += static_cast<double>(in[i]);
  return sum;
}

}  // namespace nibble
