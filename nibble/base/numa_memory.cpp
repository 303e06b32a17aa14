#include "nibble/base/numa_memory.h"

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr size_t kMostNodes = 1024;
constexpr size_t kWordBits = sizeof(unsigned long) * CHAR_BIT;  // of the system's masks

class SystemNumaMemory final : public NumaMemory {
 public:
  Status prefer(void* data, size_t bytes, int node) override {
    return bind(data, bytes, MPOL_PREFERRED, {&node, 1});
  }
  Status interleave(void* data, size_t bytes, std::span<const int> nodes) override {
    return bind(data, bytes, MPOL_INTERLEAVE, nodes);
  }

 private:
  // libnuma's mbind is this call; the library would be one more package for it.
  static Status bind(void* data, size_t bytes, int policy, std::span<const int> nodes) {
    std::array<unsigned long, kMostNodes / kWordBits> mask = {};
    for (const int node : nodes) {
      if (node < 0 || static_cast<size_t>(node) >= kMostNodes) {
        return invalid_argument(fmt::format("there is no NUMA node {}", node));
      }
      const auto n = static_cast<size_t>(node);
      mask[n / kWordBits] |= 1UL << n % kWordBits;
    }
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (first + page - 1) / page * page;
    const uintptr_t end = (first + bytes + page - 1) / page * page;
    if (begin >= end) return {};
    // The system reads one bit less than it is told.
    if (::syscall(SYS_mbind, begin, end - begin, policy, mask.data(), kMostNodes + 1, 0) == 0) {
      return {};
    }
    if (errno == EINVAL) {
      return invalid_argument(fmt::format(
          "the system has no memory for this process on NUMA node {}", fmt::join(nodes, " or ")));
    }
    if (errno == ENOMEM) {  // a range with a policy of its own is a mapping of its own
      return system_error(
          "the process has too many mappings to place more memory on NUMA nodes; a larger sysctl "
          "vm.max_map_count helps",
          ENOMEM);
    }
    if (errno == EPERM) {
      return system_error(
          "the system does not place memory on NUMA nodes (a container needs CAP_SYS_NICE)", EPERM);
    }
    return system_error("the system does not place memory on NUMA nodes", errno);
  }
};

}  // namespace

NumaMemory& system_numa_memory() {
  static SystemNumaMemory memory;
  return memory;
}

}  // namespace nibble
