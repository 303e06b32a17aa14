#include "nibble/offload/trace_replay.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "nibble/base/check.h"

namespace nibble {
namespace {

// One layer's cache; `value` says which of its experts to keep.
class ReplayedLayer {
 public:
  ReplayedLayer(int num_experts, int slots)
      : slots_(slots), present_(static_cast<size_t>(num_experts)) {}

  bool has(int32_t expert) const { return present_[static_cast<size_t>(expert)]; }

  // Reads a missing expert. `bypass`: it need not be kept when all others are worth more.
  void insert(int32_t expert, std::span<const ExpertUse> wanted,
              const std::function<double(int32_t)>& value, bool bypass) {
    if (held_ == slots_) {
      const int32_t victim = least_valued(wanted, value);
      if (bypass && value(expert) < value(victim)) return;
      present_[static_cast<size_t>(victim)] = false;
      --held_;
    }
    present_[static_cast<size_t>(expert)] = true;
    ++held_;
  }

 private:
  int32_t least_valued(std::span<const ExpertUse> wanted,
                       const std::function<double(int32_t)>& value) const {
    for (const bool spare_wanted : {true, false}) {
      int32_t worst = -1;
      double worst_value = std::numeric_limits<double>::infinity();
      for (int32_t e = 0; e < static_cast<int32_t>(present_.size()); ++e) {
        if (!has(e)) continue;
        const bool is_wanted = std::any_of(wanted.begin(), wanted.end(),
                                           [e](const ExpertUse& use) { return use.expert == e; });
        if (spare_wanted && is_wanted) continue;
        const double v = value(e);
        if (worst < 0 || v < worst_value) {
          worst = e;
          worst_value = v;
        }
      }
      if (worst >= 0) return worst;
    }
    NIBBLE_CHECK(false);
    return 0;
  }

  int slots_;
  int held_ = 0;
  std::vector<bool> present_;
};

}  // namespace

ReplayResult replay(const RoutingTrace& trace, const EvictionOptions& options, int slots) {
  NIBBLE_CHECK(slots >= 1);
  struct Layer {
    ReplayedLayer cache;
    std::unique_ptr<EvictionPolicy> policy;
  };
  std::map<int, Layer> layers;
  ReplayResult result;
  for (const RoutingStep& step : trace.steps) {
    auto found = layers.find(step.layer);
    if (found == layers.end()) {
      found = layers
                  .emplace(step.layer, Layer{ReplayedLayer(trace.num_experts, slots),
                                             make_eviction_policy(options, trace.num_experts)})
                  .first;
    }
    auto& [cache, policy] = found->second;
    policy->use(step.uses, step.num_tokens);
    // Hits first, as the store takes them: they are in use before anything is evicted.
    std::vector<int32_t> missing;
    for (const ExpertUse& use : step.uses) {
      ++result.num_uses;
      if (cache.has(use.expert)) {
        ++result.num_hits;
      } else {
        missing.push_back(use.expert);
      }
    }
    for (const int32_t e : missing) {
      cache.insert(
          e, step.uses, [&policy = policy](int32_t x) { return policy->value(x); }, false);
    }
  }
  return result;
}

ReplayResult replay_offline_optimum(const RoutingTrace& trace, int slots) {
  NIBBLE_CHECK(slots >= 1);
  // When each (layer, expert) is used, as indices of steps.
  std::map<std::pair<int, int32_t>, std::vector<size_t>> uses;
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    for (const ExpertUse& use : trace.steps[i].uses) {
      uses[{trace.steps[i].layer, use.expert}].push_back(i);
    }
  }
  std::map<int, ReplayedLayer> layers;
  ReplayResult result;
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const RoutingStep& step = trace.steps[i];
    ReplayedLayer& cache =
        layers.emplace(step.layer, ReplayedLayer(trace.num_experts, slots)).first->second;
    // Minus the next use behind this step: the farthest is worth least.
    const auto value = [&](int32_t expert) {
      const auto found = uses.find({step.layer, expert});
      if (found == uses.end()) return -std::numeric_limits<double>::max();
      const auto next = std::upper_bound(found->second.begin(), found->second.end(), i);
      return next == found->second.end() ? -std::numeric_limits<double>::max()
                                         : -static_cast<double>(*next);
    };
    std::vector<int32_t> missing;
    for (const ExpertUse& use : step.uses) {
      ++result.num_uses;
      if (cache.has(use.expert)) {
        ++result.num_hits;
      } else {
        missing.push_back(use.expert);
      }
    }
    // All hits of the step are counted, so its own experts may go, too.
    for (const int32_t e : missing) cache.insert(e, {}, value, true);
  }
  return result;
}

RoutingTrace decode_steps(RoutingTrace trace, int64_t max_tokens) {
  std::erase_if(trace.steps, [&](const RoutingStep& step) { return step.num_tokens > max_tokens; });
  return trace;
}

}  // namespace nibble
