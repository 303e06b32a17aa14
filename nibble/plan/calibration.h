// Constants from measurements: what --calibrate reads.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "nibble/plan/planner.h"
#include "nibble/plan/published.h"

namespace nibble {

struct Calibration {
  PlanConstants constants;
  std::vector<std::string> notes;  // what was replaced by what
};

// What `nibble bench --json` printed (no schema, "rows": see bench_measurement.h): its speeds
// replace the estimates, for the same model on one device. Or a JSON file {"schema":
// "nibble.calibration/1", ...} with any of
//   "memory": {"context_bytes", "collectives_bytes", "graphs_bytes", "expert_imbalance"}
//   "speed":  {"eta_mem_gpu", ...}: the names of speed_constant_names()
//   "peak":   {"device_bytes_used", "weights_bytes", "ranks", "graphs", "max_num_tokens",
//   "max_batch",
//              "tp", "moe_tp"}: what one rank used after a dummy pass; the difference to the plan
//              goes into context_bytes
//   "measurements": [{"id", "device", "format", "gpus", "mode": "tp" or "adp", "concurrency",
//              "mean_context", "isl", "osl", "kv": "bf16" or "fp8", "mtp_draft", "accept_length",
//              "measured"}]: the speed constants are fitted to them, from the constants before.
// Explicit constants win over fitted ones. Errors: bad_file naming the field, what was found and
// what is expected.
PlanResult<Calibration> load_calibration(const std::filesystem::path& path,
                                         const ModelConfig& config, const Catalogue& catalogue);
PlanResult<Calibration> parse_calibration(std::string_view json, std::string_view where,
                                          const ModelConfig& config, const Catalogue& catalogue);

}  // namespace nibble
