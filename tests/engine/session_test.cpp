#include "nibble/engine/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "nibble/engine/generate.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

LoadedModel& demo_on_cpu() {
  static const std::unique_ptr<LoadedModel> model =
      testing::load_model(testing::demo_checkpoint(), "cpu");
  return *model;
}

const std::vector<int32_t>& long_prompt() {
  static const std::vector<int32_t> ids = testing::reference_prompts().back().ids;
  return ids;
}

std::vector<float> last_logits(const SessionOptions& options, std::span<const int32_t> ids) {
  auto session = Session::create(demo_on_cpu(), options);
  EXPECT_TRUE(session.has_value());
  EXPECT_TRUE(session->append(ids, MlaForm::kExpanded).has_value());
  return {session->last_logits().begin(), session->last_logits().end()};
}

TEST(Session, ChunkingThePromptChangesNoBit) {
  SessionOptions options;
  options.max_tokens = 1024;
  options.chunk_size = 900;
  const std::vector<float> whole = last_logits(options, long_prompt());
  for (const int64_t chunk_size : {1, 37, 256}) {
    options.chunk_size = chunk_size;
    const std::span<const int32_t> ids(long_prompt());
    // One token at a time takes long: the first 100 do.
    const auto part = chunk_size == 1 ? ids.first(100) : ids;
    SessionOptions whole_options = options;
    whole_options.chunk_size = 900;
    const auto want = chunk_size == 1 ? last_logits(whole_options, part) : whole;
    const auto got = last_logits(options, part);
    EXPECT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float))) << chunk_size;
  }
}

TEST(Session, TokensInTwoCallsGiveTheBitsOfOne) {
  SessionOptions options;
  options.max_tokens = 512;
  const std::span<const int32_t> ids = std::span(long_prompt()).first(200);
  const std::vector<float> want = last_logits(options, ids);
  auto session = Session::create(demo_on_cpu(), options);
  ASSERT_TRUE(session.has_value());
  ASSERT_TRUE(session->append(ids.first(77), MlaForm::kExpanded).has_value());
  ASSERT_TRUE(session->append(ids.subspan(77), MlaForm::kExpanded).has_value());
  EXPECT_EQ(0,
            std::memcmp(session->last_logits().data(), want.data(), want.size() * sizeof(float)));
}

TEST(Session, RefusesNoTokensForeignTokensAndMoreThanTheContext) {
  SessionOptions options;
  options.max_tokens = 16;
  auto session = Session::create(demo_on_cpu(), options);
  ASSERT_TRUE(session.has_value());
  const auto refused = [&](std::vector<int32_t> ids, const char* what) {
    const Status status = session->append(ids, MlaForm::kExpanded);
    ASSERT_FALSE(status.has_value()) << what;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, HasSubstr(what));
    EXPECT_TRUE(session->token_ids().empty());
  };
  refused({}, "no tokens");
  refused({0, 4096}, "token 1 is 4096, outside the vocabulary of 4096");
  refused({-1}, "outside the vocabulary");
  refused(std::vector<int32_t>(17, 5), "17 tokens exceed the context of 16");
}

TEST(Session, RefusesAContextBeyondTheModels) {
  SessionOptions options;
  options.max_tokens = demo_on_cpu().max_seq_len + 1;
  const auto session = Session::create(demo_on_cpu(), options);
  ASSERT_FALSE(session.has_value());
  EXPECT_THAT(session.error().message, HasSubstr("4097"));
}

TEST(Generate, APromptThatFillsTheContextIsRefusedWithBothNumbers) {
  SessionOptions options;
  options.max_tokens = 64;
  auto session = Session::create(demo_on_cpu(), options);
  ASSERT_TRUE(session.has_value());
  const auto result = generate(*session, demo_on_cpu(), std::span(long_prompt()).first(64), {},
                               [](int32_t) { return true; });
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message, HasSubstr("64 tokens"));
}

TEST(Generate, StopsAtMaxTokensTheEndOfTheContextAStopTokenOrTheCallersWish) {
  const std::vector<int32_t> prompt = testing::reference_prompts()[4].ids;
  const auto run = [&](int64_t context, SamplingParams params, int wanted = 1000) {
    SessionOptions options;
    options.max_tokens = context;
    auto session = Session::create(demo_on_cpu(), options);
    params.temperature = 0;
    int seen = 0;
    auto result =
        generate(*session, demo_on_cpu(), prompt, params, [&](int32_t) { return ++seen < wanted; });
    EXPECT_TRUE(result.has_value());
    EXPECT_EQ(static_cast<size_t>(seen), result->token_ids.size());
    return *result;
  };
  const GenerateResult three = run(512, {.max_tokens = 3});
  EXPECT_EQ(three.token_ids.size(), 3u);
  EXPECT_EQ(three.finish_reason, FinishReason::kLength);

  const auto room = static_cast<int64_t>(prompt.size()) + 5;
  const GenerateResult full = run(room, {});
  EXPECT_EQ(full.token_ids.size(), 5u);
  EXPECT_EQ(full.finish_reason, FinishReason::kLength);

  const GenerateResult whole = run(512, {});
  EXPECT_EQ(whole.finish_reason, FinishReason::kStop);
  EXPECT_EQ(whole.token_ids.back(), 1);

  const GenerateResult stopped = run(512, {.stop_token_ids = {whole.token_ids[6]}});
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.token_ids.back(), whole.token_ids[6]);

  const GenerateResult past = run(200, {.ignore_eos = true});
  EXPECT_EQ(past.token_ids.size(), 200 - prompt.size());

  EXPECT_EQ(run(512, {}, 2).finish_reason, FinishReason::kAbort);
}

TEST(Generate, ASeedGivesTheSameTextAgainAndOtherSeedsOthers) {
  const std::vector<int32_t> prompt = testing::reference_prompts()[0].ids;
  const auto run = [&](int64_t seed) {
    Session session = testing::make_session(demo_on_cpu(), DType::kBf16);
    SamplingParams params;
    params.temperature = 1.5;
    params.seed = seed;
    params.max_tokens = 24;
    return generate(session, demo_on_cpu(), prompt, params, [](int32_t) { return true; })
        ->token_ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(KvCache, BytesOfATokenFollowTheFormula) {
  const ModelConfig& config = demo_on_cpu().config;
  EXPECT_EQ(KvCache::bytes_per_token(config, DType::kBf16, false), 576u * 2 * 4);
  EXPECT_EQ(KvCache::bytes_per_token(config, DType::kF8E4m3, true), 576u * 5);
  KvCacheOptions options;
  options.num_blocks = 3;
  options.with_mtp = false;
  const auto cache = KvCache::create(config, options, demo_on_cpu().kernels->device());
  ASSERT_TRUE(cache.has_value());
  EXPECT_EQ(cache->bytes(), 3u * 32 * 576 * 2 * 4);
  EXPECT_EQ(cache->layers().size(), 4u);
}

TEST(KvCache, RefusesOtherTypes) {
  KvCacheOptions options;
  options.num_blocks = 1;
  options.dtype = DType::kU8;
  const auto cache =
      KvCache::create(demo_on_cpu().config, options, demo_on_cpu().kernels->device());
  ASSERT_FALSE(cache.has_value());
  EXPECT_THAT(cache.error().message, HasSubstr("U8"));
  EXPECT_FALSE(parse_kv_cache_dtype("int8").has_value());
}

TEST(LoadedModel, RefusesW4A4WithoutNvfp4WeightsUnknownBackendsAndTooLongContexts) {
  ModelOptions options;
  options.nvfp4_activation = ActivationFormat::kNvfp4;
  auto model = LoadedModel::load(testing::demo_checkpoint(), options);
  ASSERT_FALSE(model.has_value());
  EXPECT_THAT(model.error().message, HasSubstr("nibble quantize"));

  options = {};
  options.backend = "cpuu";
  model = LoadedModel::load(testing::demo_checkpoint(), options);
  ASSERT_FALSE(model.has_value());
  EXPECT_THAT(model.error().message, HasSubstr("did you mean 'cpu'?"));

  options = {};
  options.max_seq_len = 5000;
  model = LoadedModel::load(testing::demo_checkpoint(), options);
  ASSERT_FALSE(model.has_value());
  EXPECT_THAT(model.error().message, HasSubstr("4096"));
}

}  // namespace
}  // namespace nibble
