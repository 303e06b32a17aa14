// What to change about a plan that does not fit: candidates are planned, not guessed.
#include <fmt/format.h>

#include <algorithm>

#include "nibble/plan/planner.h"

namespace nibble {

std::vector<std::string> nearest_changes(const PlanModel& model,
                                         const std::optional<PlanFormat>& format,
                                         const Hardware& hardware, const PlanRequest& request,
                                         const PlanConstants& constants) {
  std::vector<std::string> changes;
  const auto fits = [&](const Hardware& other, const PlanRequest& asked,
                        const std::optional<PlanFormat>& in) {
    const auto report = make_plan(model, in, other, asked, constants);
    return report && report->exits_with_success();
  };
  const auto try_request = [&](PlanRequest asked, std::string change) {
    if (!fits(hardware, asked, format)) return false;
    changes.push_back(std::move(change));
    return true;
  };
  for (int64_t context = request.context / 2; context >= 1024; context /= 2) {
    PlanRequest asked = request;
    asked.context = context;
    asked.isl = asked.osl = 0;
    if (try_request(asked, fmt::format("--context {}", context))) break;
  }
  for (int64_t batch = request.batch / 2; batch >= 1; batch /= 2) {
    PlanRequest asked = request;
    asked.batch = batch;
    if (try_request(asked, fmt::format("--batch {}", batch))) break;
  }
  if (!format || format->id != "nvfp4-v2") {
    const auto v2 = find_format("nvfp4-v2");
    if (v2 && fits(hardware, request, *v2)) changes.emplace_back("--quant nvfp4-v2");
  }
  const Hardware* base = &hardware;
  if (hardware.groups.size() == 1 && !hardware.groups.front().device.is_cpu() && !request.tp &&
      !request.pp && !request.ep) {
    const DeviceGroup& group = hardware.groups.front();
    for (int count = group.count + 1; count <= std::max(64, 2 * group.count); ++count) {
      Hardware more = *base;
      more.groups.front().count = count;
      if (!fits(more, request, format)) continue;
      changes.push_back(
          fmt::format("{} of {} instead of {}", count, group.device.name, group.count));
      break;
    }
  }
  const bool own_memory = !hardware.groups.empty() && (hardware.groups.front().device.is_cpu() ||
                                                       hardware.groups.front().device.is_unified());
  if (!own_memory && !hardware.vram_bytes) {
    for (const int gb : {64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048}) {
      Hardware more = hardware;
      more.ram_bytes = int64_t{gb} * 1'000'000'000;
      if (hardware.ram_bytes && *more.ram_bytes <= *hardware.ram_bytes) continue;
      if (!fits(more, request, format)) continue;
      changes.push_back(fmt::format("--ram {}", gb));
      break;
    }
  }
  if (!hardware.ssd) {
    Hardware more = hardware;
    more.ssd = true;
    if (fits(more, request, format))
      changes.emplace_back("--ssd (experts that nothing else holds)");
  }
  return changes;
}

}  // namespace nibble
