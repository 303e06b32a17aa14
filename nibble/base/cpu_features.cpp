#include "nibble/base/cpu_features.h"

#include <fmt/format.h>
#include <sched.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// A cgroup file that holds one number or "max".
uint64_t read_limit(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::numeric_limits<uint64_t>::max();
}

}  // namespace

Isa detected_isa() {
#if defined(__x86_64__)
  // __builtin_cpu_supports asks CPUID and checks XCR0 for the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Result<Isa> selected_isa() {
  const Isa detected = detected_isa();
  const char* name = std::getenv("NIBBLE_ISA");
  if (name == nullptr || *name == '\0') return detected;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_name(isa) != name) continue;
    if (isa > detected) {
      return unsupported(fmt::format("NIBBLE_ISA is {}, but this processor has only {}", name,
                                     isa_name(detected)));
    }
    return isa;
  }
  return invalid_argument(
      fmt::format("NIBBLE_ISA is '{}', expected portable, avx2 or avx512", name));
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

MemoryInfo memory_info() {
  MemoryInfo info = {};
  std::ifstream file("/proc/meminfo");
  std::string key;
  uint64_t kibibytes = 0;
  std::string unit;
  while (file >> key >> kibibytes) {
    if (key == "MemTotal:") info.total_bytes = kibibytes * 1024;
    if (key == "MemAvailable:") info.available_bytes = kibibytes * 1024;
    std::getline(file, unit);
  }
  const uint64_t limit = read_limit("/sys/fs/cgroup/memory.max");
  if (limit < info.total_bytes) {
    const uint64_t used = read_limit("/sys/fs/cgroup/memory.current");
    info.total_bytes = limit;
    info.available_bytes = std::min(info.available_bytes, used < limit ? limit - used : 0);
  }
  return info;
}

int available_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return 1;
}

}  // namespace nibble
