// YaRN rotary frequencies and the softmax scale that goes with them.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/checkpoint/config.h"

namespace nibble {

// The angle per position of each of the qk_rope_head_dim / 2 pairs: rope_theta^(-2i/d), slowed by
// YaRN where the configuration has it. Source: DeepSeek-V3 inference/model.py,
// precompute_freqs_cis; spec kernels section 1.2 (with its check values).
std::vector<double> rope_frequencies(const ModelConfig& config);

// Cosines and sines [num_positions, qk_rope_head_dim / 2], from angles in binary64, rounded once.
// Multiplied by m(factor, mscale) / m(factor, mscale_all_dim), which is 1 for R1.
struct RopeValues {
  std::vector<float> cos;
  std::vector<float> sin;
};
RopeValues rope_values(const ModelConfig& config, int64_t num_positions);

// qk_head_dim^-0.5, times m(factor, mscale_all_dim)^2 where mscale_all_dim is not 0;
// m(s, c) = s <= 1 ? 1 : 0.1 c ln s + 1. 0.13523378 for R1.
float softmax_scale(const ModelConfig& config);

}  // namespace nibble
