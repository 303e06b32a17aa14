#include "nibble/eval/stats.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

namespace nibble {
namespace {

constexpr double kNormal95 = 1.959963984540054;

// One cluster's sums over its questions.
struct Sums {
  double candidate = 0;
  double baseline = 0;
  double difference = 0;
};

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], at - static_cast<double>(below));
}

// The share of sign flips whose sum is at least as far from zero: all of them up to 15 clusters.
double sign_flip_p(const std::vector<double>& sums, std::mt19937_64& rng, int resamples) {
  const double observed = std::abs(std::accumulate(sums.begin(), sums.end(), 0.0)) - 1e-12;
  if (sums.size() <= 15) {
    const uint32_t all = 1U << sums.size();
    uint32_t as_far = 0;
    for (uint32_t flips = 0; flips < all; ++flips) {
      double sum = 0;
      for (size_t i = 0; i < sums.size(); ++i) sum += (flips >> i & 1) != 0 ? -sums[i] : sums[i];
      if (std::abs(sum) >= observed) ++as_far;
    }
    return static_cast<double>(as_far) / all;
  }
  int as_far = 1;
  for (int round = 0; round < resamples; ++round) {
    double sum = 0;
    uint64_t bits = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      if (i % 64 == 0) bits = rng();
      sum += (bits & 1) != 0 ? -sums[i] : sums[i];
      bits >>= 1;
    }
    if (std::abs(sum) >= observed) ++as_far;
  }
  return static_cast<double>(as_far) / (resamples + 1);
}

// Two-sided exact test of n_a against n_b flips at one half.
double binomial_p(int64_t a, int64_t b) {
  const int64_t n = a + b;
  if (n == 0) return 1;
  const auto log_choose = [n](int64_t k) {
    return std::lgamma(static_cast<double>(n) + 1) - std::lgamma(static_cast<double>(k) + 1) -
           std::lgamma(static_cast<double>(n - k) + 1);
  };
  double tail = 0;
  for (int64_t k = 0; k <= std::min(a, b); ++k) {
    tail += std::exp(log_choose(k) - static_cast<double>(n) * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

}  // namespace

double mean(std::span<const double> values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double clustered_se(std::span<const double> values, std::span<const std::string> clusters) {
  const double center = mean(values);
  std::map<std::string_view, double> sums;
  for (size_t i = 0; i < values.size(); ++i) sums[clusters[i]] += values[i] - center;
  if (sums.size() < 2) return 0;
  double squares = 0;
  for (const auto& [cluster, sum] : sums) squares += sum * sum;
  const auto count = static_cast<double>(sums.size());
  return std::sqrt(squares * count / (count - 1)) / static_cast<double>(values.size());
}

void RunningMean::add(const std::string& cluster, double value) {
  Cluster& one = clusters_[cluster];
  one.sum += value;
  ++one.count;
  sum_ += value;
  ++count_;
}

double RunningMean::mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }

double RunningMean::clustered_se() const {
  if (clusters_.size() < 2) return 0;
  const double center = mean();
  double squares = 0;
  for (const auto& [name, one] : clusters_) {
    const double residual = one.sum - static_cast<double>(one.count) * center;
    squares += residual * residual;
  }
  const auto count = static_cast<double>(clusters_.size());
  return std::sqrt(squares * count / (count - 1)) / static_cast<double>(count_);
}

Interval wilson(double successes, double trials) {
  const double z2 = kNormal95 * kNormal95;
  const double p = successes / trials;
  const double center = (p + z2 / (2 * trials)) / (1 + z2 / trials);
  const double half =
      kNormal95 / (1 + z2 / trials) * std::sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials));
  return {std::max(0.0, center - half), std::min(1.0, center + half)};
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1;
  double wrong = 1;
  for (int64_t i = n - c + 1; i <= n; ++i) {
    wrong *= 1 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1 - wrong;
}

Comparison compare_runs(const std::vector<Pair>& pairs, uint64_t seed, int resamples) {
  std::map<std::string, Sums> by_cluster;
  std::map<std::string, int64_t> sizes;
  std::vector<double> candidate, baseline, difference;
  std::vector<std::string> clusters;
  Comparison result;
  for (const Pair& pair : pairs) {
    Sums& sums = by_cluster[pair.cluster];
    sums.candidate += pair.candidate;
    sums.baseline += pair.baseline;
    sums.difference += pair.candidate - pair.baseline;
    candidate.push_back(pair.candidate);
    baseline.push_back(pair.baseline);
    difference.push_back(pair.candidate - pair.baseline);
    clusters.push_back(pair.cluster);
    if (pair.baseline == 1 && pair.candidate == 0) ++result.right_to_wrong;
    if (pair.baseline == 0 && pair.candidate == 1) ++result.wrong_to_right;
  }
  std::vector<Sums> sums;
  std::vector<double> differences;
  for (const auto& [cluster, one] : by_cluster) {
    sums.push_back(one);
    differences.push_back(one.difference);
  }
  result.difference = mean(difference);
  result.difference_se = clustered_se(difference, clusters);
  result.difference_95 = {result.difference - kNormal95 * result.difference_se,
                          result.difference + kNormal95 * result.difference_se};
  const double base = mean(baseline);
  std::mt19937_64 rng(seed);
  result.p_value = sign_flip_p(differences, rng, resamples);
  result.mcnemar_p = binomial_p(result.right_to_wrong, result.wrong_to_right);
  if (base <= 0) {
    // Nothing there to retain.
    result.retention = mean(candidate) > 0 ? INFINITY : 100;
    result.retention_95 = {0, INFINITY};
    return result;
  }
  result.retention = 100 * mean(candidate) / base;
  // Residuals of the ratio: candidate - R * baseline.
  std::vector<double> residuals;
  for (size_t i = 0; i < pairs.size(); ++i) {
    residuals.push_back(candidate[i] - result.retention / 100 * baseline[i]);
  }
  result.retention_se = 100 * clustered_se(residuals, clusters) / base;
  std::vector<double> ratios;
  for (int round = 0; round < resamples; ++round) {
    double above = 0, below = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      const Sums& drawn = sums[static_cast<size_t>(rng() % sums.size())];
      above += drawn.candidate;
      below += drawn.baseline;
    }
    if (below > 0) ratios.push_back(100 * above / below);
  }
  std::sort(ratios.begin(), ratios.end());
  if (!ratios.empty()) {
    result.retention_95 = {percentile(ratios, 0.025), percentile(ratios, 0.975)};
  }
  return result;
}

std::string_view retained_name(Retained verdict) {
  return verdict == Retained::kRetained ? "retained"
         : verdict == Retained::kLost   ? "lost"
                                        : "inconclusive";
}

Retained judge_retention(const Interval& retention, double threshold) {
  if (retention.low >= threshold) return Retained::kRetained;
  if (retention.high < threshold) return Retained::kLost;
  return Retained::kInconclusive;
}

std::vector<double> holm(const std::vector<double>& p_values) {
  std::vector<size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return p_values[a] < p_values[b]; });
  std::vector<double> adjusted(p_values.size());
  double most = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const double factor = static_cast<double>(order.size() - rank);
    most = std::max(most, std::min(1.0, factor * p_values[order[rank]]));
    adjusted[order[rank]] = most;
  }
  return adjusted;
}

}  // namespace nibble
