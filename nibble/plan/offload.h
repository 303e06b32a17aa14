// Experts in device memory, RAM and SSD: how many bytes go where, and how fast a token is then.
// Source: planner.md section 7.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "nibble/plan/hardware.h"
#include "nibble/plan/speed.h"

namespace nibble {

// Bytes of routed experts in each tier; the embedding table lies in RAM.
struct OffloadPlan {
  int64_t gpu = 0;
  int64_t ram = 0;
  int64_t ssd = 0;
  int64_t expert_bytes = 0;
  int64_t ram_other = 0;    // the embedding table
  int64_t short_bytes = 0;  // that found no place; 0 when it works
  // Shares of the experts that tokens want, which is the share of bytes under uniform routing.
  double gpu_hits = 0, ram_hits = 0, ssd_hits = 0;
};

struct OffloadRequest {
  int64_t expert_pool = 0;   // bytes of all routed experts
  int64_t expert_bytes = 0;  // one of them
  int64_t gpu_room = 0;      // bytes free for experts on all devices together
  int64_t ram_other = 0;
  std::optional<double> skew;
  int experts_per_layer = 256;
};

// Fills the devices' room, then RAM (less what the system keeps), then the SSD.
OffloadPlan place_experts(const OffloadRequest& request, const Hardware& hardware);

// Bytes a second from RAM to a device: 55e9 for PCIe 5 x16 as measured on an H200
// (docs/offload.md), and the same share of its lanes' rate for another "PCIeGxN"; devices with
// another link are taken to have PCIe 5 from compute capability 9 on, PCIe 4 before. Absent for
// what has no such link.
std::optional<double> host_link_rate(const PlanDevice& device);

// The share of all uses that falls on the most used `share` of n experts, when expert i is used in
// proportion to i^-exponent. 0 and 1 map to themselves; exponent 0 gives `share`.
double zipf_share(double share, int n, double exponent);

}  // namespace nibble
