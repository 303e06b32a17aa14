#include "nibble/offload/host_expert_rule.h"

#include <algorithm>

#include "nibble/offload/name_choice.h"

namespace nibble {

Result<HostExperts> parse_host_experts(std::string_view name) {
  constexpr HostExperts kModes[] = {HostExperts::kOff, HostExperts::kAuto, HostExperts::kAll};
  return choose_by_name<HostExperts>("--cpu-experts", name, kModes, host_experts_name);
}

std::string_view host_experts_name(HostExperts mode) {
  switch (mode) {
    case HostExperts::kOff:
      return "off";
    case HostExperts::kAuto:
      return "auto";
    case HostExperts::kAll:
      return "all";
  }
  return "";
}

std::vector<int32_t> experts_for_host(std::span<const MissedExpert> missed, int64_t others,
                                      const HostExpertRates& rates, HostExperts mode) {
  std::vector<int32_t> chosen;
  if (mode == HostExperts::kOff) return chosen;
  std::vector<MissedExpert> order(missed.begin(), missed.end());
  std::stable_sort(order.begin(), order.end(), [](const MissedExpert& a, const MissedExpert& b) {
    return a.tokens != b.tokens ? a.tokens < b.tokens : a.value < b.value;
  });
  double host = 0;
  double copies = rates.copy * static_cast<double>(static_cast<int64_t>(order.size()) + others);
  for (const MissedExpert& one : order) {
    const double more = rates.first_token + (one.tokens - 1) * rates.next_token;
    if (mode == HostExperts::kAuto && host + more >= std::max(host, copies)) break;
    host += more;
    copies -= rates.copy;
    chosen.push_back(one.expert);
  }
  return chosen;
}

}  // namespace nibble
