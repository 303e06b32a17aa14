// Published measurements of DeepSeek-R1 at work, and how far the estimator is from each.
// Source of the rows: planner.md section 8 and the file tests/golden/planner.json, which names who
// published each.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/config.h"
#include "nibble/plan/catalogue.h"
#include "nibble/plan/plan_error.h"
#include "nibble/plan/speed.h"

namespace nibble {

enum class EfficiencyClass { kGpu, kCpu };

struct MeasuredTier {
  double bytes_per_token = 0;
  double bandwidth_gbs = 0;
  EfficiencyClass efficiency = EfficiencyClass::kGpu;
};

// One measurement: either `tiers` is filled, or the fields of a multi-GPU run.
struct Measurement {
  std::string id;
  std::string device;  // catalogue id
  std::string format;  // "nvfp4-v1", "fp8"; for tiers only a remark
  int gpus = 1;
  ParallelMode mode = ParallelMode::kTp;
  Workload load;
  std::vector<MeasuredTier> tiers;
  StepOverhead overhead = StepOverhead::kGraph;
  double measured = 0;  // tokens a second; of one node of 8 GPUs when per_node
  bool per_node = false;
  bool used_to_set_constants = false;
  bool excluded = false;  // left out of the band after comparison
  std::string source;
  std::string note;
};
const std::vector<Measurement>& published_measurements();

struct Prediction {
  StepTime step;
  double tokens_per_second = 0;  // in the measurement's unit
};

// What the estimator says of a measurement. `config` is the model that ran. Errors: unknown_device,
// unknown_format.
PlanResult<Prediction> predict(const Measurement& measurement, const ModelConfig& config,
                               const Catalogue& catalogue, const SpeedConstants& constants);

// max(predicted / measured, measured / predicted): 1 is exact.
double ratio_error(double predicted, double measured);
double median(std::vector<double> values);

// Which constants may be fitted, by their names in calibration files.
struct SpeedConstantName {
  std::string_view name;
  double SpeedConstants::*member;
};
std::span<const SpeedConstantName> speed_constant_names();

// The constants that minimise the mean absolute log error over the measurements, each held by a
// weak pull towards `prior` (a factor of two away costs as much as an error of ln 2 / 10 in one
// row). Constants that no row depends on stay at the prior. Errors: those of predict.
PlanResult<SpeedConstants> fit_constants(const std::vector<Measurement>& rows,
                                         const ModelConfig& config, const Catalogue& catalogue,
                                         const SpeedConstants& prior);

// A prior that knows none of the measurements: half of each peak is reached, 250 us a layer, 15 us
// a message.
SpeedConstants neutral_constants();

struct AccuracyRow {
  const Measurement* measurement = nullptr;
  double predicted = 0;
  double ratio = 0;     // predicted / measured
  double left_out = 0;  // predicted by constants fitted to all other rows
  double left_out_ratio = 0;
};

struct AccuracyReport {
  std::vector<AccuracyRow> rows;
  double median_error = 0;           // ratio_error, rows not excluded
  double median_error_all = 0;       // the excluded row too
  double worst_error = 0;            // rows not excluded
  double left_out_median_error = 0;  // rows not excluded
  double left_out_worst_error = 0;
};

// Predictions beside every published measurement, with the constants given and leave-one-out: each
// row predicted by constants fitted, from neutral_constants(), to the other rows that are not
// excluded.
PlanResult<AccuracyReport> published_accuracy(const ModelConfig& config, const Catalogue& catalogue,
                                              const SpeedConstants& constants);

}  // namespace nibble
