#include "nibble/checkpoint/generation_config.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(GenerationConfig, ReadsWhatDeepSeekWrites) {
  const auto config = parse_generation_config(
      R"({"bos_token_id": 0, "do_sample": true, "temperature": 0.6, "top_p": 0.95})", "g.json");
  ASSERT_TRUE(config.has_value()) << config.error().message;
  EXPECT_EQ(config->temperature, 0.6);
  EXPECT_EQ(config->top_p, 0.95);
  EXPECT_FALSE(config->top_k.has_value());
}

TEST(GenerationConfig, DoSampleFalseMeansGreedy) {
  const auto config = parse_generation_config(R"({"do_sample": false, "temperature": 0.6})", "g");
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->temperature, 0);
}

TEST(GenerationConfig, RefusesValuesOutOfRangeByName) {
  for (const char* text : {R"({"temperature": -1})", R"({"temperature": "hot"})", R"({"top_p": 0})",
                           R"({"top_k": -2})", R"({"do_sample": 1})", "[]", "{"}) {
    const auto config = parse_generation_config(text, "generation_config.json");
    ASSERT_FALSE(config.has_value()) << text;
    EXPECT_EQ(config.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(config.error().message.find("generation_config.json"), std::string::npos);
  }
}

TEST(GenerationConfig, AMissingFileSaysNothing) {
  const auto config = load_generation_config("/nonexistent");
  ASSERT_TRUE(config.has_value());
  EXPECT_FALSE(config->temperature.has_value());
}

}  // namespace
}  // namespace nibble
