// `nibble plan` without its command line: model, hardware and request in, one report out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/plan/bench_measurement.h"
#include "nibble/plan/device_memory.h"
#include "nibble/plan/formats.h"
#include "nibble/plan/hardware.h"
#include "nibble/plan/model_source.h"
#include "nibble/plan/offload.h"
#include "nibble/plan/plan_error.h"
#include "nibble/plan/speed.h"

namespace nibble {

struct PlanConstants {
  MemoryConstants memory;
  SpeedConstants speed;
  bool calibrated = false;
  std::optional<MeasuredSpeed> measured;  // of this model on this hardware: goes before estimates
};

struct PlanRequest {
  std::optional<KvFormat> kv;  // default: FP8 for NVFP4 weights, otherwise BF16
  int64_t context = 32768;
  int64_t batch = 1;  // sequences on all devices together
  int draft_tokens = 0;
  std::optional<double> accept_length;
  int64_t isl = 0;
  int64_t osl = 0;                       // with isl: the estimate is for steady serving
  std::optional<ParallelMode> parallel;  // default: chosen
  std::optional<int> tp, ep, pp;
  double kv_fraction = 0.9;
  std::optional<int64_t> max_num_tokens;  // default: 8192, CPU 512
  std::optional<int64_t> max_batch;       // of one rank; default: 256, CPU 32
  bool graphs = true;
  bool numa_aware = false;     // the second socket's memory counts
  std::optional<double> skew;  // Zipf exponent of expert use; absent: uniform
  double node_link_rate = kDefaultNodeLinkRate;
  std::optional<double> host_link_rate;  // bytes a second from RAM; absent: host_link_rate()
  std::optional<double> net_rate;        // bytes a second, for the download
  std::optional<double> device_hour;     // price of one device for an hour
};

enum class Verdict { kFits, kTight, kOffload, kDoesNotFit };
std::string_view verdict_name(Verdict verdict);  // "fits", "tight", "offload", "does_not_fit"

struct SpeedPoint {
  int64_t batch = 0;
  StepTime step;
  double tokens_per_second = 0;
  bool measured = false;  // by nibble bench; `step` then holds its whole time in `fixed`
  double per_user() const { return tokens_per_second / static_cast<double>(batch); }
};

// One way to place the model on the devices, and what it gives.
struct Placement {
  Split split;
  RankMemory memory;
  int64_t max_num_tokens = 0;
  int64_t max_batch_per_rank = 0;  // what workspace was counted for
  Verdict verdict = Verdict::kDoesNotFit;
  int64_t needed_tokens = 0;  // in one rank's pool
  int64_t short_bytes = 0;    // for one device; 0 when it fits
  int64_t max_context = 0;    // for the batch asked
  int64_t max_batch = 0;      // for the context asked, all ranks together
  std::optional<OffloadPlan> offload;
  std::vector<SpeedPoint> points;  // empty without the figures for an estimate
  std::string no_speed;            // why, then
};

struct PlanReport {
  const PlanModel* model = nullptr;
  const Hardware* hardware = nullptr;
  PlanRequest request;
  std::string format_id;
  std::string format_title;
  ModelWeights weights;
  KvFormat kv = KvFormat::kFp8;
  double accept_length = 1;
  double mean_context = 0;
  PlanDevice device;  // the weakest
  Placement chosen;
  std::vector<Placement> alternatives;
  std::optional<double> ttft_ms;  // of one prompt of isl (or context / 2) tokens
  int64_t ttft_prompt = 0;
  std::optional<double> load_s, download_s, watts;
  std::optional<double> joules_per_token;  // at the batch asked
  std::optional<double> price_per_mtok;
  std::string launch;                     // empty when there is no command
  std::vector<std::string> steps_before;  // commands to run first
  std::vector<std::string> changes;       // what would make it fit, see nearest_changes
  std::vector<std::string> notes;
  std::vector<std::string> assumptions;

  const SpeedPoint* asked_point() const;  // of the batch asked; null without an estimate
  bool exits_with_success() const { return chosen.verdict != Verdict::kDoesNotFit; }
  // Shares of memory in the words of three engines (planner.md section 5).
  double gpu_memory_utilization() const;  // vLLM
  double mem_fraction_static() const;     // SGLang
};

// `format` absent: as stored. Errors: context_too_long, bad_parallel, bad_value, conflict,
// impossible. A model that does not fit is a report, not an error.
PlanResult<PlanReport> make_plan(const PlanModel& model, const std::optional<PlanFormat>& format,
                                 const Hardware& hardware, const PlanRequest& request,
                                 const PlanConstants& constants);

// Single changes to a plan that doesn't fit after which it does, each tried: more of the device,
// RAM, an SSD, a shorter context, a smaller batch, another format.
std::vector<std::string> nearest_changes(const PlanModel& model,
                                         const std::optional<PlanFormat>& format,
                                         const Hardware& hardware, const PlanRequest& request,
                                         const PlanConstants& constants);

}  // namespace nibble
