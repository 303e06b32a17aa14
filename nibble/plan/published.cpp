#include "nibble/plan/published.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "nibble/plan/formats.h"

namespace nibble {
namespace {

constexpr std::array<SpeedConstantName, 9> kNames = {{
    {"eta_mem_gpu", &SpeedConstants::eta_mem_gpu},
    {"eta_mem_cpu", &SpeedConstants::eta_mem_cpu},
    {"eta_compute", &SpeedConstants::eta_compute},
    {"eta_link", &SpeedConstants::eta_link},
    {"layer_overhead_graph_us", &SpeedConstants::layer_overhead_graph_us},
    {"layer_overhead_generic_us", &SpeedConstants::layer_overhead_generic_us},
    {"layer_overhead_cpu_us", &SpeedConstants::layer_overhead_cpu_us},
    {"alpha_nvlink_us", &SpeedConstants::alpha_nvlink_us},
    {"alpha_pcie_us", &SpeedConstants::alpha_pcie_us},
}};

// A row with everything looked up, so that a fit evaluates it thousands of times.
struct PreparedRow {
  const Measurement* measurement = nullptr;
  PlanDevice device;
  ModelWeights weights;
  Split split;
};

PlanResult<PreparedRow> prepare(const Measurement& measurement, const ModelConfig& config,
                                const Catalogue& catalogue) {
  PreparedRow row;
  row.measurement = &measurement;
  if (!measurement.tiers.empty()) return row;
  const DeviceSpec spec = NIBBLE_TRY(catalogue.find(measurement.device));
  row.device = NIBBLE_TRY(device_of(spec));
  const PlanFormat format = NIBBLE_TRY(find_format(measurement.format));
  row.weights = NIBBLE_TRY(weights_of(config, format));
  row.split = make_split(measurement.mode, measurement.gpus);
  return row;
}

Prediction evaluate(const PreparedRow& row, const ModelConfig& config,
                    const SpeedConstants& constants) {
  const Measurement& m = *row.measurement;
  Prediction prediction;
  if (!m.tiers.empty()) {
    std::vector<Tier> tiers;
    for (const MeasuredTier& tier : m.tiers) {
      const bool cpu = tier.efficiency == EfficiencyClass::kCpu;
      tiers.push_back({tier.bytes_per_token, tier.bandwidth_gbs * 1e9,
                       cpu ? constants.eta_mem_cpu : constants.eta_mem_gpu});
    }
    prediction.step.mem = tiers_ms(tiers);
    prediction.step.comp = prediction.step.comm = prediction.step.prefill = 0;
    prediction.step.fixed =
        config.num_hidden_layers * layer_overhead_us(constants, m.overhead) * 1e-3;
    prediction.tokens_per_second = 1e3 / prediction.step.total();
    return prediction;
  }
  const LinkSpeed link = link_speed(row.device, std::min(m.gpus, row.device.gpus_per_node),
                                    constants, kDefaultNodeLinkRate);
  prediction.step =
      decode_step(config, row.weights, row.device, row.split, m.load, constants, m.overhead, link);
  prediction.tokens_per_second =
      m.load.batch * m.load.accept_length / prediction.step.total() * 1e3;
  if (m.per_node) prediction.tokens_per_second *= 8.0 / m.gpus;
  return prediction;
}

// Mean absolute log error, and the pull towards the prior.
double cost(const std::vector<PreparedRow>& rows, const ModelConfig& config,
            const SpeedConstants& constants, const SpeedConstants& prior) {
  double sum = 0;
  for (const PreparedRow& row : rows) {
    sum += std::abs(
        std::log(evaluate(row, config, constants).tokens_per_second / row.measurement->measured));
  }
  for (const SpeedConstantName& name : kNames) {
    const double away = std::log(constants.*name.member / prior.*name.member) / std::log(2.0);
    sum += 0.1 * std::log(2.0) * away * away;
  }
  return sum;
}

// Efficiencies are shares; times lie between a microsecond and a second.
double clamp_constant(const SpeedConstantName& name, double value) {
  if (name.name.starts_with("eta")) return std::clamp(value, 0.02, 1.0);
  return std::clamp(value, 1.0, 1e6);
}

SpeedConstants fit(const std::vector<PreparedRow>& rows, const ModelConfig& config,
                   const SpeedConstants& prior) {
  SpeedConstants best = prior;
  double best_cost = cost(rows, config, best, prior);
  // Coordinate descent with a factor that shrinks: the cost is smooth enough and has few
  // dimensions.
  for (double factor = 1.5; factor > 1.002;) {
    bool improved = false;
    for (const SpeedConstantName& name : kNames) {
      for (const double step : {factor, 1 / factor}) {
        SpeedConstants trial = best;
        trial.*name.member = clamp_constant(name, best.*name.member * step);
        const double trial_cost = cost(rows, config, trial, prior);
        if (trial_cost < best_cost - 1e-12) {
          best = trial;
          best_cost = trial_cost;
          improved = true;
        }
      }
    }
    if (!improved) factor = std::sqrt(factor);
  }
  return best;
}

PlanResult<std::vector<PreparedRow>> prepare_all(const std::vector<Measurement>& measurements,
                                                 const ModelConfig& config,
                                                 const Catalogue& catalogue) {
  std::vector<PreparedRow> rows;
  rows.reserve(measurements.size());
  for (const Measurement& measurement : measurements) {
    rows.push_back(NIBBLE_TRY(prepare(measurement, config, catalogue)));
  }
  return rows;
}

}  // namespace

PlanResult<Prediction> predict(const Measurement& measurement, const ModelConfig& config,
                               const Catalogue& catalogue, const SpeedConstants& constants) {
  const PreparedRow row = NIBBLE_TRY(prepare(measurement, config, catalogue));
  return evaluate(row, config, constants);
}

double ratio_error(double predicted, double measured) {
  return std::max(predicted / measured, measured / predicted);
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::span<const SpeedConstantName> speed_constant_names() { return kNames; }

SpeedConstants neutral_constants() {
  SpeedConstants constants;
  for (const SpeedConstantName& name : kNames) {
    constants.*name.member = name.name.starts_with("eta")     ? 0.5
                             : name.name.starts_with("layer") ? 250
                                                              : 15;
  }
  return constants;
}

PlanResult<SpeedConstants> fit_constants(const std::vector<Measurement>& measurements,
                                         const ModelConfig& config, const Catalogue& catalogue,
                                         const SpeedConstants& prior) {
  const auto rows = NIBBLE_TRY(prepare_all(measurements, config, catalogue));
  return fit(rows, config, prior);
}

PlanResult<AccuracyReport> published_accuracy(const ModelConfig& config, const Catalogue& catalogue,
                                              const SpeedConstants& constants) {
  const auto& measurements = published_measurements();
  const auto rows = NIBBLE_TRY(prepare_all(measurements, config, catalogue));
  AccuracyReport report;
  std::vector<double> errors, all_errors, left_out_errors;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<PreparedRow> others;
    for (size_t j = 0; j < rows.size(); ++j) {
      if (j != i && !rows[j].measurement->excluded) others.push_back(rows[j]);
    }
    const SpeedConstants fitted = fit(others, config, neutral_constants());
    AccuracyRow row;
    row.measurement = rows[i].measurement;
    const double measured = row.measurement->measured;
    row.predicted = evaluate(rows[i], config, constants).tokens_per_second;
    row.ratio = row.predicted / measured;
    row.left_out = evaluate(rows[i], config, fitted).tokens_per_second;
    row.left_out_ratio = row.left_out / measured;
    all_errors.push_back(ratio_error(row.predicted, measured));
    if (!row.measurement->excluded) {
      errors.push_back(all_errors.back());
      left_out_errors.push_back(ratio_error(row.left_out, measured));
    }
    report.rows.push_back(row);
  }
  report.median_error = median(errors);
  report.median_error_all = median(all_errors);
  report.worst_error = *std::max_element(errors.begin(), errors.end());
  report.left_out_median_error = median(left_out_errors);
  report.left_out_worst_error = *std::max_element(left_out_errors.begin(), left_out_errors.end());
  return report;
}

}  // namespace nibble
