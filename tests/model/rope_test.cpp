#include "nibble/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

ModelConfig r1_rope_config() {
  ModelConfig config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.rope_theta = 10000;
  config.rope_scaling = YarnConfig{40, 4096, 32, 1, 1.0, 1.0};
  return config;
}

// The check values of the specification for DeepSeek-R1, whose ramp runs from pair 10 to pair 23.
TEST(Rope, R1FrequenciesHaveTheirCheckValues) {
  const std::vector<double> f = rope_frequencies(r1_rope_config());
  ASSERT_EQ(f.size(), 32u);
  EXPECT_DOUBLE_EQ(f[0], 1);
  EXPECT_NEAR(f[10], 0.05623413, 1e-8);
  EXPECT_NEAR(f[11], 0.03900693, 1e-8);
  EXPECT_NEAR(f[16], 0.0055, 1e-9);
  EXPECT_NEAR(f[22], 1.778279e-4, 1e-10);
  EXPECT_NEAR(f[23], 3.333804e-5, 1e-11);
  EXPECT_NEAR(f[31], 3.333804e-6, 1e-12);
}

TEST(Rope, R1SoftmaxScaleCarriesTheSquaredMscale) {
  EXPECT_NEAR(softmax_scale(r1_rope_config()), 0.13523378, 1e-8);
}

TEST(Rope, WithoutScalingFrequenciesAreThePlainPowers) {
  ModelConfig config = r1_rope_config();
  config.rope_scaling.reset();
  const std::vector<double> f = rope_frequencies(config);
  for (size_t i = 0; i < f.size(); ++i) {
    EXPECT_NEAR(f[i], std::pow(10000.0, -static_cast<double>(i) / 32), 1e-15);
  }
  EXPECT_NEAR(softmax_scale(config), 1 / std::sqrt(192.0), 1e-8);
}

TEST(Rope, TableHoldsCosineAndSineOfPositionTimesFrequency) {
  const ModelConfig config = r1_rope_config();
  const RopeValues values = rope_values(config, 3);
  const std::vector<double> f = rope_frequencies(config);
  ASSERT_EQ(values.cos.size(), 3u * 32u);
  EXPECT_EQ(values.cos[0], 1);
  EXPECT_EQ(values.sin[0], 0);
  EXPECT_FLOAT_EQ(values.cos[2 * 32 + 5], static_cast<float>(std::cos(2 * f[5])));
  EXPECT_FLOAT_EQ(values.sin[2 * 32 + 5], static_cast<float>(std::sin(2 * f[5])));
}

// mscale 0.5 against mscale_all_dim 1: (0.05 ln 40 + 1) / (0.1 ln 40 + 1).
TEST(Rope, UnequalMscalesScaleTheTable) {
  ModelConfig config = r1_rope_config();
  config.rope_scaling->mscale = 0.5;
  const double ratio = (0.05 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1);
  EXPECT_NEAR(rope_values(config, 1).cos[0], ratio, 1e-7);
}

}  // namespace
}  // namespace nibble
