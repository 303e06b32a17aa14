#include "nibble/plan/offload.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace nibble {

std::optional<double> host_link_rate(const PlanDevice& device) {
  if (device.is_cpu() || device.is_unified()) return std::nullopt;
  if (device.link.starts_with("NVLink-C2C")) return std::nullopt;  // not measured
  int generation = 0;
  int lanes = 16;
  if (std::sscanf(device.link.c_str(), "PCIe%dx%d", &generation, &lanes) != 2) {
    const double capability = std::strtod(device.compute_capability.c_str(), nullptr);
    if (capability <= 0) return std::nullopt;
    generation = capability >= 9 ? 5 : 4;
    lanes = 16;
  }
  if (generation < 1 || generation > 6 || lanes < 1 || lanes > 32) return std::nullopt;
  return 55e9 * std::exp2(generation - 5) * lanes / 16;
}

double zipf_share(double share, int n, double exponent) {
  double all = 0;
  double chosen = 0;
  const double count = share * n;
  for (int i = 1; i <= n; ++i) {
    const double weight = std::pow(i, -exponent);
    all += weight;
    // The last expert counts in part.
    chosen += weight * std::clamp(count - (i - 1), 0.0, 1.0);
  }
  return all > 0 ? chosen / all : 0;
}

OffloadPlan place_experts(const OffloadRequest& request, const Hardware& hardware) {
  OffloadPlan plan;
  plan.expert_bytes = request.expert_bytes;
  plan.ram_other = request.ram_other;
  if (request.expert_pool <= 0 || request.expert_bytes <= 0) return plan;
  const auto whole = [&](int64_t room) {
    return std::max<int64_t>(0, room) / request.expert_bytes * request.expert_bytes;
  };
  int64_t left = request.expert_pool;
  plan.gpu = std::min(left, whole(request.gpu_room));
  left -= plan.gpu;
  if (hardware.ram_bytes) {
    const int64_t room =
        *hardware.ram_bytes - system_reserve_bytes(*hardware.ram_bytes) - request.ram_other;
    plan.ram = std::min(left, whole(room));
    left -= plan.ram;
    if (room < 0 && left == 0) left = -room;  // the embedding itself found no place
  }
  if (hardware.ssd) {
    plan.ssd = hardware.ssd_bytes ? std::min(left, *hardware.ssd_bytes) : left;
    left -= plan.ssd;
  }
  plan.short_bytes = left;
  const auto pool = static_cast<double>(request.expert_pool);
  const double gpu = static_cast<double>(plan.gpu) / pool;
  const double ram = static_cast<double>(plan.ram) / pool;
  const double exponent = request.skew.value_or(0);
  plan.gpu_hits = zipf_share(gpu, request.experts_per_layer, exponent);
  plan.ram_hits = zipf_share(gpu + ram, request.experts_per_layer, exponent) - plan.gpu_hits;
  plan.ssd_hits = std::max(0.0, 1 - plan.gpu_hits - plan.ram_hits);
  if (plan.ssd == 0 && plan.short_bytes == 0) plan.ssd_hits = 0;
  return plan;
}

}  // namespace nibble
