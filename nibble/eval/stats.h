// Scores with their uncertainty, and what is left of a baseline's.
// Source of every formula: the evaluation specification, section 8.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble {

struct Interval {
  double low = 0;
  double high = 0;
};

double mean(std::span<const double> values);

// The standard error of the mean of `values`, whose residuals are summed within clusters:
// sqrt(sum over clusters of (sum of residuals)^2) / n * sqrt(n_c / (n_c - 1)). 0 for one cluster.
double clustered_se(std::span<const double> values, std::span<const std::string> clusters);

// The same two of values that come one by one; takes memory for clusters, not for values.
class RunningMean {
 public:
  void add(const std::string& cluster, double value);
  // 0 before the first value.
  double mean() const;
  double clustered_se() const;

 private:
  struct Cluster {
    double sum = 0;
    int64_t count = 0;
  };
  std::unordered_map<std::string, Cluster> clusters_;
  double sum_ = 0;
  int64_t count_ = 0;
};

// Wilson's 95 % interval for `successes` of `trials` > 0.
Interval wilson(double successes, double trials);

// The unbiased estimate of pass@k from n samples with c right ones: 1 - C(n-c, k) / C(n, k).
double pass_at_k(int64_t n, int64_t c, int64_t k);

// One question in two runs.
struct Pair {
  std::string cluster;
  double candidate = 0;  // mean correctness over the samples
  double baseline = 0;
};

struct Comparison {
  double difference = 0;  // mean of candidate - baseline
  double difference_se = 0;
  Interval difference_95;
  double retention = 0;     // percent
  Interval retention_95;    // paired cluster bootstrap, percentiles
  double retention_se = 0;  // delta method, as a check
  double p_value = 1;       // sign-flip permutation test over cluster sums
  double mcnemar_p = 1;     // exact; of questions that are right or wrong in both runs
  int64_t right_to_wrong = 0;
  int64_t wrong_to_right = 0;
};

// pairs must not be empty. Random numbers come from `seed` alone.
Comparison compare_runs(const std::vector<Pair>& pairs, uint64_t seed, int resamples = 10'000);

enum class Retained { kRetained, kLost, kInconclusive };
std::string_view retained_name(Retained verdict);  // "retained", "lost", "inconclusive"
// In percent: retained when the whole interval is at or above the threshold, lost below it.
Retained judge_retention(const Interval& retention, double threshold);

// Holm's adjustment, in the order given.
std::vector<double> holm(const std::vector<double>& p_values);

}  // namespace nibble
