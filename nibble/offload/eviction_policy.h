// Which expert of a layer is worth keeping: one number each, the smallest goes first.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/model/expert_store.h"

namespace nibble {

enum class EvictionKind {
  kLfu,    // uses, halved every ageing_tokens tokens of the layer
  kLru,    // the last use
  kScore,  // a moving average of the router's weights
};

// lfu, lru, score. Errors: kInvalidArgument naming these.
Result<EvictionKind> parse_eviction_kind(std::string_view name);
std::string_view eviction_kind_name(EvictionKind kind);

struct EvictionOptions {
  EvictionKind kind = EvictionKind::kLfu;
  // kLfu: tokens between halvings; 0: as many as a layer has experts, which on recorded traces is
  // near the best (docs/offload.md).
  int64_t ageing_tokens = 0;
  double score_decay = 0.02;  // kScore: the weight of a new token, in (0, 1]
};

// The memory of one layer: of all its experts, resident or not.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // A step of num_tokens tokens chose these.
  virtual void use(std::span<const ExpertUse> uses, int64_t num_tokens) = 0;

  // How much an expert is worth now. Equal values are told apart by their last use.
  virtual double value(int32_t expert) const = 0;
};

std::unique_ptr<EvictionPolicy> make_eviction_policy(const EvictionOptions& options,
                                                     int num_experts);

}  // namespace nibble
