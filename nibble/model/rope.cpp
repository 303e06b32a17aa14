#include "nibble/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config) {
  const auto dim = static_cast<double>(config.qk_rope_head_dim);
  const auto pairs = static_cast<size_t>(config.qk_rope_head_dim / 2);
  std::vector<double> frequencies(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    frequencies[i] = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / dim);
  }
  if (!config.rope_scaling) return frequencies;

  // Pairs that turn more than beta_fast times over the original context keep their frequency; those
  // that turn less than beta_slow times are slowed by `factor`; a ramp lies between.
  const YarnConfig& yarn = *config.rope_scaling;
  const auto dimension_of = [&](double turns) {
    const auto original = static_cast<double>(yarn.original_max_position_embeddings);
    return dim * std::log(original / (2 * std::numbers::pi * turns)) /
           (2 * std::log(config.rope_theta));
  };
  const double low = std::max(std::floor(dimension_of(yarn.beta_fast)), 0.0);
  const double high = std::min(std::ceil(dimension_of(yarn.beta_slow)), dim - 1);
  const double width = high > low ? high - low : 0.001;
  for (size_t i = 0; i < pairs; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / width, 0.0, 1.0);
    frequencies[i] = frequencies[i] * (1 - ramp) + frequencies[i] / yarn.factor * ramp;
  }
  return frequencies;
}

RopeValues rope_values(const ModelConfig& config, int64_t num_positions) {
  const std::vector<double> frequencies = rope_frequencies(config);
  double scale = 1;
  if (config.rope_scaling) {
    const YarnConfig& yarn = *config.rope_scaling;
    scale = yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim);
  }
  RopeValues values;
  values.cos.reserve(static_cast<size_t>(num_positions) * frequencies.size());
  values.sin.reserve(values.cos.capacity());
  for (int64_t position = 0; position < num_positions; ++position) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      values.cos.push_back(static_cast<float>(std::cos(angle) * scale));
      values.sin.push_back(static_cast<float>(std::sin(angle) * scale));
    }
  }
  return values;
}

float softmax_scale(const ModelConfig& config) {
  double scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (config.rope_scaling && config.rope_scaling->mscale_all_dim != 0) {
    const double m = yarn_mscale(config.rope_scaling->factor, config.rope_scaling->mscale_all_dim);
    scale *= m * m;
  }
  return static_cast<float>(scale);
}

}  // namespace nibble
