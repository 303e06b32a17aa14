#include "nibble/engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/engine/philox.h"

namespace nibble {
namespace {

// Keeps the first `keep` of `order` in p and sets the rest to zero.
void keep_first(std::vector<double>& p, const std::vector<int32_t>& order, size_t keep) {
  for (size_t i = keep; i < order.size(); ++i) p[static_cast<size_t>(order[i])] = 0;
}

void normalise(std::vector<double>& p) {
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
}

}  // namespace

Result<int32_t> argmax(std::span<const float> logits) {
  size_t best = logits.size();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return corrupt(fmt::format("the logit of token {} is {}", i, logits[i]));
    }
    if (std::isfinite(logits[i]) && (best == logits.size() || logits[i] > logits[best])) best = i;
  }
  if (best == logits.size()) return corrupt("no token has a finite logit");
  return static_cast<int32_t>(best);
}

Result<std::vector<double>> sampling_distribution(std::span<const float> logits,
                                                  const SamplingParams& params) {
  const float peak = logits[static_cast<size_t>(NIBBLE_TRY(argmax(logits)))];
  const auto temperature = static_cast<float>(params.temperature);
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) {
    p[i] = std::exp(static_cast<double>((logits[i] - peak) / temperature));
  }
  // The largest p is 1 before normalising.
  if (params.min_p > 0) {
    for (double& value : p) {
      if (value < params.min_p) value = 0;
    }
  }
  normalise(p);

  const bool limit_k = params.top_k > 0 && params.top_k < static_cast<int64_t>(p.size());
  if (!limit_k && params.top_p >= 1) return p;

  std::vector<int32_t> order;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] > 0) order.push_back(static_cast<int32_t>(i));
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const double pa = p[static_cast<size_t>(a)];
    const double pb = p[static_cast<size_t>(b)];
    return pa != pb ? pa > pb : a < b;
  });
  if (limit_k && order.size() > static_cast<size_t>(params.top_k)) {
    keep_first(p, order, static_cast<size_t>(params.top_k));
    order.resize(static_cast<size_t>(params.top_k));
    normalise(p);
  }
  if (params.top_p < 1) {
    double before = 0;
    size_t keep = 0;
    while (keep < order.size() && before < params.top_p) {
      before += p[static_cast<size_t>(order[keep])];
      ++keep;
    }
    keep_first(p, order, keep);
    normalise(p);
  }
  return p;
}

Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                       int64_t output_position, int choice) {
  if (params.temperature < kGreedyTemperature) return argmax(logits);
  const std::vector<double> p = NIBBLE_TRY(sampling_distribution(logits, params));
  const double u = philox_uniform(static_cast<uint64_t>(params.seed.value_or(0)),
                                  static_cast<uint32_t>(output_position), RandomStream::kDraw,
                                  static_cast<uint32_t>(choice));
  double cumulative = 0;
  int32_t last = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] <= 0) continue;
    cumulative += p[i];
    last = static_cast<int32_t>(i);
    if (cumulative > u) break;
  }
  return last;
}

}  // namespace nibble
