#include "nibble/device/memory_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/text.h"

namespace nibble {

Result<Buffer> Device::allocate_for(MemoryUse use, size_t bytes) {
  // The same memory under another name.
  Buffer buffer = NIBBLE_TRY(allocate(bytes));
  if (buffer.data() == nullptr) return buffer;
  buffer.set_use(use);
  return buffer;
}

Result<MemoryReport> memory_report(Device& device, uint64_t graph_bytes) {
  const DeviceMemory memory = NIBBLE_TRY(device.memory());
  MemoryReport report;
  report.device = device.name();
  report.total_bytes = memory.total_bytes;
  report.free_bytes = memory.free_bytes;
  uint64_t known = 0;
  const auto add = [&](const char* name, uint64_t bytes) {
    report.uses.emplace_back(name, bytes);
    known += bytes;
  };
  add("weights", device.used_bytes(MemoryUse::kWeights));
  add("kv_cache", device.used_bytes(MemoryUse::kKvCache));
  add("workspace", device.used_bytes(MemoryUse::kWorkspace));
  add("graphs", graph_bytes);
  add("pool", device.pooled_bytes());
  const uint64_t taken = memory.total_bytes - std::min(memory.free_bytes, memory.total_bytes);
  report.uses.emplace_back("other", taken > known ? taken - known : 0);
  report.host_visible_bytes = device.used_bytes(MemoryUse::kHostVisible);
  return report;
}

std::string to_text(const MemoryReport& report) {
  std::string text =
      fmt::format("{}: {}, of which ", report.device, format_bytes(report.total_bytes));
  for (const auto& [name, bytes] : report.uses) {
    if (bytes > 0) text += fmt::format("{} {}, ", name, format_bytes(bytes));
  }
  text += "free " + format_bytes(report.free_bytes);
  if (report.host_visible_bytes > 0) {
    text += fmt::format("; page-locked on the host {}", format_bytes(report.host_visible_bytes));
  }
  return text;
}

}  // namespace nibble
