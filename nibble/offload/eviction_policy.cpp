#include "nibble/offload/eviction_policy.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/check.h"
#include "nibble/offload/name_choice.h"

namespace nibble {
namespace {

// Counts a use a step, not a token: a prompt's chunk touches nearly every expert, and its counts
// would bury what decoding has learned.
class Lfu final : public EvictionPolicy {
 public:
  Lfu(int num_experts, int64_t ageing_tokens)
      : ageing_tokens_(ageing_tokens),
        counts_(static_cast<size_t>(num_experts)),
        last_(static_cast<size_t>(num_experts)) {}

  void use(std::span<const ExpertUse> uses, int64_t num_tokens) override {
    ++step_;
    for (const ExpertUse& use : uses) {
      counts_[static_cast<size_t>(use.expert)] += 1;
      last_[static_cast<size_t>(use.expert)] = step_;
    }
    tokens_ += num_tokens;
    if (tokens_ < ageing_tokens_) return;
    tokens_ = 0;
    for (double& count : counts_) count /= 2;
  }

  // Counts come first; a step is worth less than any difference of counts that matters.
  double value(int32_t expert) const override {
    const auto e = static_cast<size_t>(expert);
    return counts_[e] + 1e-9 * static_cast<double>(last_[e]);
  }

 private:
  int64_t ageing_tokens_;
  int64_t tokens_ = 0;
  int64_t step_ = 0;
  std::vector<double> counts_;
  std::vector<int64_t> last_;
};

class Lru final : public EvictionPolicy {
 public:
  explicit Lru(int num_experts) : last_(static_cast<size_t>(num_experts)) {}
  void use(std::span<const ExpertUse> uses, int64_t /*num_tokens*/) override {
    ++step_;
    for (const ExpertUse& use : uses) last_[static_cast<size_t>(use.expert)] = step_;
  }
  double value(int32_t expert) const override {
    return static_cast<double>(last_[static_cast<size_t>(expert)]);
  }

 private:
  int64_t step_ = 0;
  std::vector<int64_t> last_;
};

// Averages decay when they are looked at, so that a step costs its own experts only.
class Score final : public EvictionPolicy {
 public:
  Score(int num_experts, double decay)
      : decay_(decay),
        average_(static_cast<size_t>(num_experts)),
        last_(static_cast<size_t>(num_experts)) {}
  void use(std::span<const ExpertUse> uses, int64_t num_tokens) override {
    ++step_;
    for (const ExpertUse& use : uses) {
      const auto e = static_cast<size_t>(use.expert);
      const double mean =
          static_cast<double>(use.weight) / static_cast<double>(std::max<int64_t>(1, num_tokens));
      average_[e] = value(use.expert) + decay_ * mean;
      last_[e] = step_;
    }
  }
  double value(int32_t expert) const override {
    const auto e = static_cast<size_t>(expert);
    return average_[e] * std::pow(1 - decay_, static_cast<double>(step_ - last_[e]));
  }

 private:
  double decay_;
  int64_t step_ = 0;
  std::vector<double> average_;
  std::vector<int64_t> last_;
};

}  // namespace

Result<EvictionKind> parse_eviction_kind(std::string_view name) {
  constexpr EvictionKind kKinds[] = {EvictionKind::kLfu, EvictionKind::kLru, EvictionKind::kScore};
  return choose_by_name<EvictionKind>("--expert-cache", name, kKinds, eviction_kind_name);
}

std::string_view eviction_kind_name(EvictionKind kind) {
  switch (kind) {
    case EvictionKind::kLfu:
      return "lfu";
    case EvictionKind::kLru:
      return "lru";
    case EvictionKind::kScore:
      return "score";
  }
  return "";
}

std::unique_ptr<EvictionPolicy> make_eviction_policy(const EvictionOptions& options,
                                                     int num_experts) {
  NIBBLE_CHECK(options.ageing_tokens >= 0 && options.score_decay > 0 && options.score_decay <= 1);
  switch (options.kind) {
    case EvictionKind::kLfu:
      return std::make_unique<Lfu>(num_experts,
                                   options.ageing_tokens > 0 ? options.ageing_tokens : num_experts);
    case EvictionKind::kLru:
      return std::make_unique<Lru>(num_experts);
    case EvictionKind::kScore:
      return std::make_unique<Score>(num_experts, options.score_decay);
  }
  return nullptr;
}

}  // namespace nibble
