#include "nibble/engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/base/check.h"

namespace nibble {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

struct Candidate {
  double value;  // larger is likelier
  int32_t id;
};

bool likelier(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// The k likeliest of candidates, each put in by offer(), with a heap of k.
class Best {
 public:
  explicit Best(int64_t k) : k_(static_cast<size_t>(std::max<int64_t>(k, 0))) {}

  void offer(const Candidate& candidate) {
    if (heap_.size() == k_) {
      if (k_ == 0 || !likelier(candidate, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), likelier);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), likelier);
  }

  std::vector<Candidate> take() && {
    std::sort_heap(heap_.begin(), heap_.end(), likelier);
    return std::move(heap_);
  }

 private:
  size_t k_;
  std::vector<Candidate> heap_;  // the least likely in front
};

template <typename ToLogprob>
PositionLogprobs report(const std::vector<Candidate>& best, TokenLogprob chosen,
                        ToLogprob to_logprob) {
  PositionLogprobs result;
  result.chosen = chosen;
  bool has_chosen = false;
  for (const Candidate& candidate : best) {
    const auto rank = static_cast<int64_t>(result.top.size()) + 1;
    result.top.push_back({candidate.id, to_logprob(candidate.value), rank});
    has_chosen |= candidate.id == chosen.id;
  }
  if (!has_chosen) result.top.push_back(chosen);
  return result;
}

}  // namespace

Result<PositionLogprobs> logprobs(std::span<const float> logits, int32_t chosen, int64_t k) {
  NIBBLE_CHECK(chosen >= 0 && static_cast<size_t>(chosen) < logits.size());
  const auto peak = static_cast<double>(logits[static_cast<size_t>(NIBBLE_TRY(argmax(logits)))]);
  const Candidate own = {static_cast<double>(logits[static_cast<size_t>(chosen)]), chosen};
  double sum = 0;
  int64_t rank = 1;
  Best best(k);
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate = {static_cast<double>(logits[i]), static_cast<int32_t>(i)};
    sum += std::exp(candidate.value - peak);
    rank += likelier(candidate, own) ? 1 : 0;
    if (candidate.value > kNever) best.offer(candidate);
  }
  const double log_sum = std::log(sum);
  const auto to_logprob = [&](double logit) { return logit - peak - log_sum; };
  return report(std::move(best).take(), {chosen, to_logprob(own.value), rank}, to_logprob);
}

PositionLogprobs logprobs(const SampledLogprobs& sampled, int32_t chosen) {
  const auto peak = static_cast<double>(sampled.peak);
  const double log_sum = std::log(sampled.sum);
  const auto to_logprob = [&](double logit) { return logit - peak - log_sum; };
  std::vector<Candidate> best;
  best.reserve(static_cast<size_t>(sampled.count));
  for (int32_t i = 0; i < sampled.count; ++i) {
    best.push_back({static_cast<double>(sampled.top[i].logit), sampled.top[i].id});
  }
  return report(best, {chosen, to_logprob(static_cast<double>(sampled.chosen)), sampled.rank},
                to_logprob);
}

PositionLogprobs logprobs(const Distribution& distribution, int32_t chosen, int64_t k) {
  Candidate own = {0, chosen};
  for (const auto& [id, probability] : distribution) {
    if (id == chosen) own.value = probability;
  }
  Best best(k);
  int64_t rank = 1;
  for (const auto& [id, probability] : distribution) {
    const Candidate candidate = {probability, id};
    rank += likelier(candidate, own) ? 1 : 0;
    best.offer(candidate);
  }
  const auto to_logprob = [](double probability) { return std::log(probability); };
  return report(std::move(best).take(), {chosen, to_logprob(own.value), rank}, to_logprob);
}

}  // namespace nibble
