#include "nibble/kernels/cpu/weight_placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/kernels/cpu/panel_layout.h"

namespace nibble {
namespace {

// Smaller buffers of HostDevice share pages with others.
constexpr size_t kSmallestPlaced = size_t{2} << 20;

constexpr int64_t kDefaultMappings = 65530;

}  // namespace

int64_t system_most_mappings() {
  static const int64_t kMappings = [] {
    std::ifstream file("/proc/sys/vm/max_map_count");
    int64_t mappings = 0;
    return file >> mappings && mappings > 0 ? mappings : kDefaultMappings;
  }();
  return kMappings;
}

void WeightPlacement::piece_bounds(int64_t groups, int64_t step,
                                   std::vector<int64_t>* bounds) const {
  bounds->clear();
  for (size_t node = 0; node <= pool_.nodes().size(); ++node) {
    bounds->push_back(ceil_div(first_group(groups, node), step));
  }
}

void WeightPlacement::place(void* data, LinearFormat format, int64_t rows, int64_t cols) const {
  const int64_t panels = panels_of(rows);
  const int64_t bytes = panel_bytes(format, cols);
  const auto nodes = pool_.nodes();
  if (nodes.size() == 1 || static_cast<size_t>(panels * bytes) < kSmallestPlaced) return;
  if (!take_mappings(static_cast<int64_t>(nodes.size()))) return;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto first_panel = [&](size_t node) {
      return std::min(panels, first_group(groups_of(rows), node) * kGroupPanels);
    };
    const int64_t begin = first_panel(i) * bytes;
    const auto length = static_cast<size_t>(first_panel(i + 1) * bytes - begin);
    report(memory_.prefer(static_cast<std::byte*>(data) + begin, length, nodes[i]));
  }
}

void WeightPlacement::spread(void* data, size_t bytes) const {
  if (pool_.nodes().size() == 1 || bytes < kSmallestPlaced || !take_mappings(1)) return;
  report(memory_.interleave(data, bytes, pool_.nodes()));
}

bool WeightPlacement::take_mappings(int64_t count) const {
  const int64_t limit = most_mappings_ / 2;
  int64_t taken = mappings_.load();
  do {
    if (taken + count > limit) {
      std::call_once(reported_mappings_, [&] {
        const auto nodes = static_cast<int64_t>(pool_.nodes().size());
        const int64_t needed = std::max(expected_ * nodes, taken + count);
        log_warning(fmt::format(
            "weights are not all placed on their NUMA nodes: they take half of the {} mappings "
            "that vm.max_map_count allows, the others lie on the node whose thread packs them; "
            "'sysctl vm.max_map_count={}' lets all be placed",
            most_mappings_, 2 * needed));
      });
      return false;
    }
  } while (!mappings_.compare_exchange_weak(taken, taken + count));
  return true;
}

void WeightPlacement::report(const Status& placed) const {
  if (placed) return;
  std::call_once(reported_, [&] {
    log_warning(fmt::format("{}; weights stay on the NUMA node whose thread packed them",
                            placed.error().message));
  });
}

}  // namespace nibble
