#include "nibble/engine/sampler.h"

#include <algorithm>
#include <bit>

#include "nibble/base/check.h"

namespace nibble {
namespace {

// The order is made in bands of falling weight, each sorted when it is needed: a trained model's
// top_p is nearly always inside the first two, a few dozen tokens of 129,280.
constexpr float kFirstBand = 1.0F / 16;
constexpr float kBandRatio = 1.0F / 64;
constexpr float kLastBand = 1e-12F;  // below this the rest is one band

uint64_t order_key(float weight, size_t id) {
  return uint64_t{std::bit_cast<uint32_t>(weight)} << 32 | (0xFFFFFFFF - id);
}
float key_weight(uint64_t key) { return std::bit_cast<float>(static_cast<uint32_t>(key >> 32)); }
bool limits_top_k(const SamplingParams& params, size_t vocab_size) {
  return params.top_k > 0 && params.top_k < static_cast<int64_t>(vocab_size);
}
int32_t key_id(uint64_t key) { return static_cast<int32_t>(0xFFFFFFFF - (key & 0xFFFFFFFF)); }

}  // namespace

Status Sampler::compute_weights(std::span<const float> logits, const SamplingParams& params) {
  NIBBLE_CHECK(!is_greedy(params));
  const float peak = logits[static_cast<size_t>(NIBBLE_TRY(argmax(logits)))];
  weights_.resize(logits.size());
  total_ = softmax_weights(logits, peak, static_cast<float>(params.temperature), weights_);
  if (params.min_p > 0) {  // the largest weight is 1
    total_ = 0;
    for (float& weight : weights_) {
      if (static_cast<double>(weight) < params.min_p) weight = 0;
      total_ += static_cast<double>(weight);
    }
  }
  select(params);
  return {};
}

// Adds the next band to order_; false when every weight above 0 is in it.
bool Sampler::extend_order() {
  if (order_floor_ <= 0) return false;
  const float ceiling = order_floor_;
  const bool is_first = order_.empty() && ceiling > 1;
  float floor = is_first ? kFirstBand : ceiling * kBandRatio;
  if (floor < kLastBand) floor = 0;
  const size_t before = order_.size();
  constexpr size_t kStride = 16;
  for (size_t start = 0; start < weights_.size(); start += kStride) {
    const size_t end = std::min(start + kStride, weights_.size());
    // One test for a stride, since nearly all hold nothing.
    unsigned any = 0;
    for (size_t i = start; i < end; ++i) {
      any |= static_cast<unsigned>(weights_[i] >= floor) &
             static_cast<unsigned>(weights_[i] < ceiling);
    }
    if (any == 0) continue;
    for (size_t i = start; i < end; ++i) {
      const float weight = weights_[i];
      if (weight >= floor && weight < ceiling && weight > 0) order_.push_back(order_key(weight, i));
    }
  }
  std::sort(order_.begin() + static_cast<ptrdiff_t>(before), order_.end(), std::greater<>());
  order_floor_ = floor;
  return order_.size() > before || floor > 0;
}

// Fills kept_ and total_ by top_k, then top_p.
void Sampler::select(const SamplingParams& params) {
  const bool has_k = limits_top_k(params, weights_.size());
  all_ = !has_k && params.top_p >= 1;
  if (all_) return;

  order_.clear();
  order_floor_ = 2;  // above every weight
  size_t keep = weights_.size();
  if (has_k) {
    keep = static_cast<size_t>(params.top_k);
    while (order_.size() < keep && extend_order()) {
    }
    keep = std::min(keep, order_.size());
    total_ = 0;
    for (size_t i = 0; i < keep; ++i) total_ += static_cast<double>(key_weight(order_[i]));
  }
  if (params.top_p < 1) {
    double before = 0;
    size_t nucleus = 0;
    while (nucleus < keep && before < params.top_p) {
      bool has_more = true;
      while (nucleus == order_.size() && has_more) has_more = extend_order();
      if (nucleus == order_.size()) break;
      before += static_cast<double>(key_weight(order_[nucleus])) / total_;
      ++nucleus;
    }
    keep = nucleus;
  }
  kept_.clear();
  for (size_t i = 0; i < keep; ++i) kept_.push_back(key_id(order_[i]));
  std::sort(kept_.begin(), kept_.end());
  total_ = 0;
  for (const int32_t id : kept_) total_ += static_cast<double>(weights_[static_cast<size_t>(id)]);
}

// visit(id, probability) in id order until it returns false.
template <typename Visit>
void Sampler::visit(Visit visit) const {
  if (all_) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] <= 0) continue;
      if (!visit(static_cast<int32_t>(i), static_cast<double>(weights_[i]) / total_)) return;
    }
    return;
  }
  for (const int32_t id : kept_) {
    if (!visit(id, static_cast<double>(weights_[static_cast<size_t>(id)]) / total_)) return;
  }
}

Result<int32_t> Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                                int64_t output_position, int choice, RandomStream stream) {
  if (is_greedy(params)) return argmax(logits);
  NIBBLE_TRY(compute_weights(logits, params));
  const double u = uniform(params, output_position, stream, choice);
  double cumulative = 0;
  int32_t drawn = 0;
  visit([&](int32_t id, double probability) {
    drawn = id;
    cumulative += probability;
    return cumulative <= u;
  });
  return drawn;
}

Result<Distribution> Sampler::distribution(std::span<const float> logits,
                                           const SamplingParams& params) {
  NIBBLE_TRY(compute_weights(logits, params));
  Distribution result;
  visit([&](int32_t id, double probability) {
    result.push_back({id, probability});
    return true;
  });
  return result;
}

Distribution distribution_of_weights(std::span<const float> weights, const SamplingParams& params) {
  // The total is taken in the order of compute_weights() and select().
  const bool is_whole =
      params.min_p <= 0 && params.top_p >= 1 && !limits_top_k(params, weights.size());
  double total = 0;
  if (is_whole) {
    total = sum_weights(weights);
  } else {
    for (const float weight : weights) total += static_cast<double>(weight);
  }
  Distribution result;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    result.push_back({static_cast<int32_t>(i), static_cast<double>(weights[i]) / total});
  }
  return result;
}

Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                       int64_t output_position, int choice) {
  return Sampler().sample(logits, params, output_position, choice);
}

Result<std::vector<double>> sampling_distribution(std::span<const float> logits,
                                                  const SamplingParams& params) {
  const Distribution sparse = NIBBLE_TRY(Sampler().distribution(logits, params));
  std::vector<double> p(logits.size());
  for (const auto& [id, probability] : sparse) p[static_cast<size_t>(id)] = probability;
  return p;
}

int32_t draw(const Distribution& distribution, double u) {
  NIBBLE_CHECK(!distribution.empty());
  double cumulative = 0;
  for (const auto& [id, probability] : distribution) {
    cumulative += probability;
    if (cumulative > u) return id;
  }
  return distribution.back().id;
}

double uniform(const SamplingParams& params, int64_t output_position, RandomStream stream,
               int choice) {
  return philox_uniform(static_cast<uint64_t>(params.seed.value_or(0)),
                        static_cast<uint32_t>(output_position), stream,
                        static_cast<uint32_t>(choice));
}

}  // namespace nibble
