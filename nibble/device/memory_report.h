// Where every byte of a device went.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/device/device.h"

namespace nibble {

struct MemoryReport {
  std::string device;
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
  // Name and bytes, all that is not free: "weights", "kv_cache", "workspace", "graphs", "pool",
  // and "other", which on a GPU is the context, code, and other processes.
  std::vector<std::pair<std::string, uint64_t>> uses;
  uint64_t host_visible_bytes = 0;  // page-locked memory of the host
};

// `graph_bytes` are those of recorded steps, about. Errors: those of Device::memory().
Result<MemoryReport> memory_report(Device& device, uint64_t graph_bytes = 0);

// "cuda:0 NVIDIA H200: 139.8 GiB, of which weights 12.1 GiB, ..., free 3.0 GiB".
std::string to_text(const MemoryReport& report);

}  // namespace nibble
