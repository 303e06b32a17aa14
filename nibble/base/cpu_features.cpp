#include "nibble/base/cpu_features.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "nibble/base/error.h"
#include "nibble/base/processors.h"

namespace nibble {
namespace {

// A cgroup file that holds one number or "max".
uint64_t read_limit(const std::filesystem::path& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::numeric_limits<uint64_t>::max();
}

using KeyedNumbers = std::map<std::string, uint64_t, std::less<>>;

// A file of lines "key number ...", as the kernel writes /proc/meminfo and memory.stat.
KeyedNumbers read_keyed_numbers(const std::filesystem::path& path) {
  KeyedNumbers numbers;
  std::ifstream file(path);
  std::string key;
  uint64_t number = 0;
  std::string rest;
  while (file >> key >> number) {
    numbers[key] = number;
    std::getline(file, rest);
  }
  return numbers;
}

uint64_t value_or_zero(const KeyedNumbers& numbers, std::string_view key) {
  const auto found = numbers.find(key);
  return found == numbers.end() ? 0 : found->second;
}

#if defined(__x86_64__)
// Whether the processor has what kAmx means beside kAvx512Vnni, and this process may use tiles. The
// numbers of bits are those of Intel's manual, volume 2, CPUID.
bool has_amx() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return false;  // no XGETBV
  unsigned low = 0;
  unsigned high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16Tiles = 1u << 22;
  constexpr unsigned kFp16 = 1u << 23;
  constexpr unsigned kTiles = 1u << 24;
  constexpr unsigned kInt8Tiles = 1u << 25;
  constexpr unsigned kAll = kBf16Tiles | kFp16 | kTiles | kInt8Tiles;
  constexpr unsigned kVbmi = 1u << 1;
  if ((d & kAll) != kAll || (c & kVbmi) == 0) return false;
  constexpr unsigned kBf16 = 1u << 5;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kBf16) == 0) return false;
  // The state of tiles is 8 kB a thread, which Linux gives to processes that ask for it.
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Isa detect_isa() {
#if defined(__x86_64__)
  // __builtin_cpu_supports asks CPUID and checks XCR0 for the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
    return has_amx() ? Isa::kAmx : Isa::kAvx512Vnni;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

}  // namespace

Isa detected_isa() {
  static const Isa kIsa = detect_isa();
  return kIsa;
}

Result<Isa> selected_isa() {
  const Isa detected = detected_isa();
  const char* name = std::getenv("NIBBLE_ISA");
  if (name == nullptr || *name == '\0') return detected;
  for (const Isa isa : kAllIsas) {
    if (isa_name(isa) != name) continue;
    if (isa > detected) {
      return unsupported(fmt::format("NIBBLE_ISA is {}, but this processor has only {}", name,
                                     isa_name(detected)));
    }
    return isa;
  }
  return invalid_argument(
      fmt::format("NIBBLE_ISA is '{}', expected portable, avx2, avx512, avx512vnni or amx", name));
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

MemoryInfo memory_info() { return memory_info("/"); }

MemoryInfo memory_info(const std::filesystem::path& root) {
  MemoryInfo info = {};
  const KeyedNumbers machine = read_keyed_numbers(root / "proc/meminfo");
  info.total_bytes = 1024 * value_or_zero(machine, "MemTotal:");
  info.available_bytes = 1024 * value_or_zero(machine, "MemAvailable:");

  const auto cgroup = root / "sys/fs/cgroup";
  const uint64_t limit = read_limit(cgroup / "memory.max");
  if (limit < info.total_bytes) {
    // File pages that are merely cached are counted as used, but given back on demand; without
    // this a checkpoint that was read once would look like memory that is gone.
    const KeyedNumbers stat = read_keyed_numbers(cgroup / "memory.stat");
    const uint64_t current = read_limit(cgroup / "memory.current");
    const uint64_t cached =
        value_or_zero(stat, "inactive_file") + value_or_zero(stat, "active_file");
    const uint64_t used = current - std::min(current, cached);
    info.total_bytes = limit;
    info.available_bytes = std::min(info.available_bytes, limit - std::min(limit, used));
  }
  return info;
}

int available_processors() {
  return within_cpu_quota(static_cast<int>(allowed_processors().size()));
}

}  // namespace nibble
