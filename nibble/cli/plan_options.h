// What the command line of `nibble plan` says, and what it means.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "nibble/plan/capacity.h"
#include "nibble/plan/device_sets.h"
#include "nibble/plan/planner.h"

namespace nibble {

// As typed; empty and absent mean not given.
struct PlanOptions {
  std::string model;
  std::vector<std::string> gpus;
  std::string vram, ram, ssd, cpu, net;
  std::string quant;
  std::string kv = "auto";
  std::string context = "32768";
  std::optional<int64_t> batch, isl, osl, mtp, max_num_tokens, max_batch;
  std::optional<int> tp, ep, pp;
  std::optional<double> accept, kv_fraction, skew, node_link, host_link;
  std::string parallel = "auto";
  bool no_graphs = false;
  bool numa_aware = false;
  std::string find;
  bool all_gpus = false;
  bool accuracy = false;
  std::vector<std::string> filters;
  std::string sort;
  bool json = false, csv = false, markdown = false, launch = false, verbose = false;
  std::vector<std::string> prices;
  std::string method = "exact";
  std::string calibrate;
  std::string gpu_file;  // added to the catalogue
  std::string gpus_csv;  // instead of the catalogue
  std::string html;
  std::optional<int> serve;        // a port of this machine
  std::optional<double> capacity;  // requests a second
  std::optional<double> max_tpot, max_ttft, prefix_share, load;
};

// The catalogue with --gpus and --gpu-file. Errors: bad_file.
PlanResult<Catalogue> plan_catalogue(const PlanOptions& options);

// --gpu, --vram, --ram, --cpu, --ssd, or this machine. Errors: unknown_device, bad_value, conflict.
PlanResult<Hardware> plan_hardware(const PlanOptions& options, const Catalogue& catalogue,
                                   std::vector<std::string>* notes);

// RAM and SSD alone, for questions about all devices.
PlanResult<Hardware> plan_beside(const PlanOptions& options, const Catalogue& catalogue);

// Errors: bad_value, context_too_long comes from make_plan.
PlanResult<PlanRequest> plan_request(const PlanOptions& options, const PlanModel& model);

// --capacity and what goes with it.
CapacityRequest capacity_request(const PlanOptions& options);

// --price X and --price ID=X. Errors: bad_value, unknown_device.
PlanResult<std::map<std::string, double>> plan_prices(const PlanOptions& options,
                                                      const Catalogue& catalogue);

}  // namespace nibble
