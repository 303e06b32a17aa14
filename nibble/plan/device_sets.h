// Which devices of the catalogue hold a model, and how many of each it takes.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/plan/planner.h"

namespace nibble {

// A catalogue entry with the smallest number of them that holds the model at the context and batch
// asked; or, when none up to 64 GPUs does, the largest number tried and why not.
struct DeviceSet {
  DeviceSpec spec;
  int entries = 0;  // how many of the entry
  int gpus = 0;     // devices in them
  int nodes = 1;
  std::shared_ptr<Hardware> hardware;
  std::optional<PlanReport> report;  // absent when no count could be planned at all
  std::string reason;                // why, then
  std::optional<double> price_hour;

  bool holds() const { return report && report->exits_with_success(); }
};

// Of one entry. `prices`: US dollars (or any currency) an hour by catalogue id. `ram` and `ssd` in
// `request_hardware` are taken over, so that offload can be asked of every device.
DeviceSet smallest_set(const PlanModel& model, const std::optional<PlanFormat>& format,
                       const DeviceSpec& spec, const Hardware& beside, const PlanRequest& request,
                       const PlanConstants& constants, const std::map<std::string, double>& prices);

std::vector<DeviceSet> smallest_sets(const PlanModel& model,
                                     const std::optional<PlanFormat>& format,
                                     const Catalogue& catalogue, const Hardware& beside,
                                     const PlanRequest& request, const PlanConstants& constants,
                                     const std::map<std::string, double>& prices);

// Keeps the sets for which "key=value" holds: vendor, class, verdict, checked (yes or no), runs
// (yes or no: nibble has a backend), name (a part of it), gpus (at most). Errors: bad_value.
PlanStatus filter_sets(std::vector<DeviceSet>& sets, std::string_view filter);

// Sorts by name, gpus, memory, tok_s, per_user, watts, energy, price or cheapest (price where there
// is one, then watts); what holds the model first, unknown last. Errors: bad_value.
PlanStatus sort_sets(std::vector<DeviceSet>& sets, std::string_view key);

// Whether nibble has a backend for it: NVIDIA GPUs and CPUs.
bool has_backend(const DeviceSpec& spec);

// "2x DGX H100", "4x H200 141GB SXM".
std::string set_title(const DeviceSet& set);

}  // namespace nibble
