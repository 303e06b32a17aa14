#include "nibble/engine/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace nibble {
namespace {

using ::testing::HasSubstr;

struct BadParams {
  std::function<void(SamplingParams&)> change;
  const char* message;
  ErrorCode code = ErrorCode::kInvalidArgument;
};

TEST(SamplingParams, ValuesOutOfRangeAreNamedWithTheirRange) {
  using P = SamplingParams;
  const std::vector<BadParams> cases = {
      {[](P& p) { p.temperature = -1; }, "temperature is -1, expected 0..2"},
      {[](P& p) { p.temperature = 2.5; }, "temperature is 2.5, expected 0..2"},
      {[](P& p) { p.temperature = NAN; }, "temperature is nan"},
      {[](P& p) { p.top_p = 0; }, "top_p is 0, expected above 0, at most 1"},
      {[](P& p) { p.top_p = 1.5; }, "top_p"},
      {[](P& p) { p.top_k = -2; }, "top_k is -2"},
      {[](P& p) { p.min_p = 1.1; }, "min_p is 1.1, expected 0..1"},
      {[](P& p) { p.max_tokens = 0; }, "max_tokens is 0, expected 1 or more"},
      {[](P& p) { p.max_tokens = -1; }, "max_tokens is -1, expected 1 or more"},
      {[](P& p) { p.min_tokens = -1; }, "min_tokens is -1"},
      {[](P& p) { p.max_tokens = 3, p.min_tokens = 4; },
       "min_tokens is 4, expected at most max_tokens, 3"},
      {[](P& p) { p.repetition_penalty = 0; }, "repetition_penalty is 0"},
      {[](P& p) { p.repetition_penalty = 10.5; }, "repetition_penalty"},
      {[](P& p) { p.presence_penalty = -2.1; }, "presence_penalty is -2.1, expected -2..2"},
      {[](P& p) { p.frequency_penalty = NAN; }, "frequency_penalty"},
      {[](P& p) { p.logit_bias[7] = 101; }, "logit_bias of token 7 is 101, expected -100..100"},
      {[](P& p) {
         for (int64_t id = 0; id <= 1024; ++id) p.logit_bias[id] = 1;
       },
       "the size of logit_bias is 1025, expected at most 1024"},
      {[](P& p) { p.n = 0; }, "n is 0, expected 1..128"},
      {[](P& p) { p.n = 129; }, "n is 129"},
      {[](P& p) { p.n = 3, p.best_of = 2; }, "best_of is 2, expected n..128, n is 3"},
      {[](P& p) { p.stop = std::vector<std::string>(17, "a"); }, "stop is 17, expected at most 16"},
      {[](P& p) {
         p.stop = {"a", ""};
       },
       "stop[1] is 0, expected 1..256 bytes"},
      {[](P& p) { p.stop = {std::string(257, 'a')}; }, "stop[0] is 257"},
      {[](P& p) { p.bad = {""}; }, "bad[0] is 0"},
      {[](P& p) { p.stop_token_ids.resize(65); }, "stop_token_ids is 65, expected at most 64"},
      {[](P& p) { p.logprobs = 21; }, "logprobs is 21, expected 0..20"},
      {[](P& p) { p.prompt_logprobs = -1; }, "prompt_logprobs is -1"},
      {[](P& p) { p.truncate_prompt_tokens = 0; }, "truncate_prompt_tokens is 0"},
      {[](P& p) { p.thinking_budget = -1; }, "thinking_budget is -1"},
      {[](P& p) {
         p.relaxed_acceptance = RelaxedAcceptance{true, 0, 0};
       },
       "relaxed_acceptance.topk is 0"},
      {[](P& p) {
         p.relaxed_acceptance = RelaxedAcceptance{true, 1, 1.5};
       },
       "relaxed_acceptance.delta is 1.5, expected 0..1"},
      {[](P& p) { p.priority = 101; }, "priority is 101, expected -100..100"},
      {[](P& p) { p.guided = Guided{.kind = Guided::Kind::kChoice}; }, "no choices"},
      {[](P& p) { p.guided = Guided{}, p.ignore_eos = true; }, "ignore_eos"},
  };
  for (const BadParams& c : cases) {
    SamplingParams params;
    c.change(params);
    const Status status = validate(params);
    ASSERT_FALSE(status.has_value()) << c.message;
    EXPECT_EQ(status.error().code, c.code);
    EXPECT_THAT(status.error().message, HasSubstr(c.message));
  }
}

TEST(SamplingParams, TheLimitsOfEachRangeAreAllowed) {
  EXPECT_TRUE(validate({}).has_value());
  SamplingParams low;
  low.max_tokens = 0;
  low.prompt_logprobs = 0;
  low.temperature = 0;
  low.top_p = 1e-9;
  low.top_k = -1;
  low.presence_penalty = low.frequency_penalty = -2;
  low.logit_bias[0] = -100;
  low.thinking_budget = 0;
  low.priority = -100;
  EXPECT_TRUE(validate(low).has_value());
  SamplingParams high;
  high.max_tokens = high.min_tokens = 5;
  high.temperature = 2;
  high.min_p = 1;
  high.repetition_penalty = 10;
  high.n = high.best_of.emplace(128);
  high.logprobs = 20;
  high.stop = std::vector<std::string>(16, std::string(256, 'x'));
  high.relaxed_acceptance = RelaxedAcceptance{true, 10, 1};
  EXPECT_TRUE(validate(high).has_value());
}

TEST(SamplingParams, TokenIdsOutsideTheVocabularyAreNamed) {
  SamplingParams params;
  params.logit_bias[9] = 1;
  params.stop_token_ids = {0, 9};
  EXPECT_TRUE(validate_token_ids(params, 10).has_value());
  EXPECT_THAT(validate_token_ids(params, 9).error().message,
              HasSubstr("logit_bias is 9, expected 0..8"));
  params.logit_bias.clear();
  params.stop_token_ids = {-1};
  EXPECT_THAT(validate_token_ids(params, 9).error().message, HasSubstr("stop_token_ids is -1"));
}

}  // namespace
}  // namespace nibble
