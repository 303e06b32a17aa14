// DeviceSampler's contract as plain loops over logits in the host's memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/engine/sampler.h"
#include "nibble/engine/verify.h"
#include "nibble/kernels/device_sampler.h"

namespace nibble::testing {

// What SampledLogprobs says, from the raw row.
inline SampledLogprobs logprobs_as_told(const MatrixView& logits, const SampleRow& row,
                                        int32_t token) {
  const float* const x = logits.row<float>(row.row);
  std::vector<int32_t> order(static_cast<size_t>(logits.cols));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  SampledLogprobs told;
  told.peak = x[order[0]];
  told.chosen = x[token];
  for (int64_t i = 0; i < logits.cols; ++i) {
    told.sum += std::exp(static_cast<double>(x[i]) - static_cast<double>(told.peak));
  }
  told.rank =
      static_cast<int32_t>(std::find(order.begin(), order.end(), token) - order.begin()) + 1;
  told.count = row.logprobs;
  for (int32_t i = 0; i < told.count; ++i) {
    const int32_t id = order[static_cast<size_t>(i)];
    told.top[i] = {id, x[id]};
  }
  return told;
}

// Weights that drafts were drawn from, by their row.
struct ToldWeights {
  std::vector<float> weights;
  Distribution distribution;
};
using KeptWeights = std::map<int32_t, ToldWeights>;

// SampleRow::keep_weights.
inline ToldWeights weights_as_told(std::span<const float> x, const SamplingParams& params) {
  ToldWeights told;
  told.distribution = Sampler().distribution(x, params).value();
  std::vector<float> all(x.size());
  const float peak = *std::max_element(x.begin(), x.end());
  (void)softmax_weights(x, peak, static_cast<float>(params.temperature), all);
  told.weights.resize(x.size());
  for (const auto& [id, probability] : told.distribution) {
    told.weights[static_cast<size_t>(id)] = all[static_cast<size_t>(id)];
  }
  return told;
}

// SampleRow::draft_weights.
inline SampledRow judged_as_told(const Distribution& p, const Distribution& q,
                                 const SampleRow& row) {
  std::map<int32_t, double> rest;
  for (const auto& [id, probability] : p) rest[id] = probability;
  const double p_draft = rest.count(row.draft) > 0 ? rest[row.draft] : 0;
  double q_draft = 0;
  for (const auto& [id, probability] : q) {
    if (id == row.draft) q_draft = probability;
    if (rest.count(id) > 0) rest[id] -= probability;
  }
  if (row.acceptance < p_draft / q_draft) return {SampledRow::kToken, row.draft, 1};
  Distribution residual;
  double total = 0;
  for (const auto& [id, left] : rest) {
    if (left <= 0) continue;
    residual.push_back({id, left});
    total += left;
  }
  if (residual.empty()) return {};  // only rounding can say so: the host's case
  for (TokenProbability& entry : residual) entry.probability /= total;
  return {SampledRow::kToken, draw(residual, row.uniform), 0};
}

// The contract of SampleRow, step by step.
inline SampledRow sample_as_told(const MatrixView& logits, const SampleRow& row,
                                 KeptWeights* kept = nullptr) {
  std::vector<float> x(logits.row<float>(row.row), logits.row<float>(row.row) + logits.cols);
  if (row.forced >= 0) {
    if (row.keep_weights >= 0) {
      ToldWeights& told = (*kept)[row.keep_weights];
      told.weights.assign(x.size(), 0);
      told.weights[static_cast<size_t>(row.forced)] = 1;
      told.distribution = {{row.forced, 1}};
    }
    return {SampledRow::kToken, row.forced, row.forced == row.draft};
  }
  for (const TokenBias& entry : row.bias) x[static_cast<size_t>(entry.id)] += entry.bias;
  for (size_t i = 0; i < x.size() && !row.allowed.empty(); ++i) {
    if ((row.allowed[i / 64] >> (i % 64) & 1) == 0) x[i] = -std::numeric_limits<float>::infinity();
  }
  for (const int32_t id : row.forbidden)
    x[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
  for (const TokenSeen& seen : row.seen) {
    float& logit = x[static_cast<size_t>(seen.id)];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    logit -= row.frequency_penalty * static_cast<float>(seen.in_output) +
             (seen.in_output > 0 ? row.presence_penalty : 0);
  }
  SamplingParams params;
  params.temperature = row.greedy ? 0 : static_cast<double>(row.temperature);
  params.top_k = row.top_k;
  params.top_p = row.top_p;
  params.min_p = row.min_p;
  const int32_t best = argmax(x).value();
  SampledRow sampled{SampledRow::kToken, best, 0};
  if (!row.greedy) {
    const ToldWeights own = weights_as_told(x, params);
    if (row.draft_weights >= 0) {
      return judged_as_told(own.distribution, kept->at(row.draft_weights).distribution, row);
    }
    sampled.token = draw(own.distribution, row.uniform);
    if (row.keep_weights >= 0) (*kept)[row.keep_weights] = own;
  }
  if (row.draft < 0) return sampled;
  const auto probabilities = sampling_distribution(x, {}).value();
  const double own = probabilities[static_cast<size_t>(row.draft)];
  int64_t rank = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float draft = x[static_cast<size_t>(row.draft)];
    if (x[i] > draft || (x[i] == draft && i < static_cast<size_t>(row.draft))) ++rank;
  }
  const auto top = static_cast<float>(probabilities[static_cast<size_t>(best)]);
  sampled.accepted = own > 0 && relaxed_accepts(top, static_cast<float>(own), rank,
                                                row.relaxed_topk, row.relaxed_delta)
                         ? 1
                         : 0;
  return sampled;
}

// The tokens that a device would give, for engines on the cpu backend; `left_to_host` of the rows
// are made undecided by chance.
class ToldSampler final : public DeviceSampler {
 public:
  explicit ToldSampler(double left_to_host) : left_to_host_(left_to_host) {}

  void sample(const MatrixView& logits, std::span<const SampleRow> rows) override {
    results_.clear();
    for (const SampleRow& row : rows) {
      NIBBLE_CHECK(row.keep_weights < num_rows_ && row.draft_weights < num_rows_);
      SampledRow sampled = sample_as_told(logits, row, &kept_);
      if (sampled.outcome == SampledRow::kToken && row.logprobs >= 0) {
        sampled.logprobs =
            logprobs_as_told(logits, row, sampled.accepted != 0 ? row.draft : sampled.token);
      }
      if (std::bernoulli_distribution(left_to_host_)(rng_)) sampled = {};
      if (sampled.outcome != SampledRow::kToken) kept_.erase(row.keep_weights);
      results_.push_back(sampled);
    }
  }
  std::span<const SampledRow> results() const override { return results_; }
  Status reserve_weights(int64_t rows) override {
    num_rows_ = rows;
    return {};
  }
  Status copy_weights(int64_t row, std::span<float> weights) override {
    const auto& from = kept_.at(static_cast<int32_t>(row)).weights;
    NIBBLE_CHECK(weights.size() == from.size());
    std::copy(from.begin(), from.end(), weights.begin());
    return {};
  }

 private:
  double left_to_host_;
  int64_t num_rows_ = 0;
  std::mt19937 rng_{3};
  KeptWeights kept_;
  std::vector<SampledRow> results_;
};

}  // namespace nibble::testing
