// Which experts that a GPU lacks are computed on the host, where they lie, instead of being copied.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

enum class HostExperts {
  kOff,   // none
  kAuto,  // where measured rates say that it is sooner done
  kAll,   // all that are in RAM
};

// off, auto, all. Errors: kInvalidArgument naming these and the nearest.
Result<HostExperts> parse_host_experts(std::string_view name);
std::string_view host_experts_name(HostExperts mode);

// Seconds, measured on this machine.
struct HostExpertRates {
  double copy = 0;         // of one expert to the GPU
  double first_token = 0;  // one expert over one token on the host: its weights are read
  double next_token = 0;   // each further token of the same expert
};

struct MissedExpert {
  int32_t expert = 0;
  int32_t tokens = 0;  // that chose it
  double value = 0;    // to the cache: the least valued are not worth a slot
};

// The numbers of those that the host computes, while `others` more are copied in any case. Both
// begin at once, and the later of the two ends the layer: experts go to the host, the cheapest
// first and among equals the least valued, while that ends it sooner. kAll: every one; kOff: none.
std::vector<int32_t> experts_for_host(std::span<const MissedExpert> missed, int64_t others,
                                      const HostExpertRates& rates, HostExperts mode);

}  // namespace nibble
