#include "nibble/kernels/cpu/weight_placement.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/kernels/cpu/panel_layout.h"

namespace nibble {
namespace {

// Smaller buffers of HostDevice share pages with others.
constexpr size_t kSmallestPlaced = size_t{2} << 20;

}  // namespace

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
  if (pool_.nodes().size() == 1 || bytes < kSmallestPlaced) return;
  report(memory_.interleave(data, bytes, pool_.nodes()));
}

void WeightPlacement::report(const Status& placed) const {
  if (placed) return;
  std::call_once(reported_, [&] {
    log_warning(
        fmt::format("{}; weights stay on the NUMA node whose thread packed them (a container needs "
                    "CAP_SYS_NICE)",
                    placed.error().message));
  });
}

}  // namespace nibble
