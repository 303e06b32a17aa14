// A DeviceSampler's tokens against the host's, from the same logits: equal, or left to the host.
#include "tests/cuda/device_sampling.h"

namespace nibble {
namespace {

TEST_F(DeviceSampling, EveryFilterGivesTheHostsTokens) {
  std::mt19937 rng(11);
  for (const float spread : {0.01F, 1.0F, 3.0F, 8.0F}) {
    const auto logits = random_logits(rng, 1, spread);
    for (const double temperature : {0.0, 0.3, 1.0, 2.0}) {
      for (const int64_t top_k : {0, 1, 2, 50, 5000}) {
        for (const double top_p : {1.0, 0.95, 0.5, 0.01}) {
          for (const double min_p : {0.0, 0.05}) {
            SamplingParams params;
            params.temperature = temperature;
            params.top_k = top_k;
            params.top_p = top_p;
            params.min_p = min_p;
            params.seed = static_cast<int64_t>(rng());
            (void)expect_equal(params, {}, logits);
          }
        }
      }
    }
  }
  EXPECT_EQ(windows_, 4 * 4 * 5 * 4 * 2);
  EXPECT_LE(undecided_, windows_ / 50);
}

TEST_F(DeviceSampling, TiesFallAsOnTheHost) {
  std::mt19937 rng(12);
  for (int i = 0; i < 60; ++i) {
    const auto logits = random_logits(rng, 1, 2, i % 2 == 0 ? 0.5F : 0.0625F);
    SamplingParams params;
    params.temperature = i % 5 == 0 ? 0 : 1;
    params.top_k = i % 3 == 0 ? 700 : 0;
    params.top_p = i % 4 == 0 ? 0.9 : 1;
    params.seed = i;
    (void)expect_equal(params, {}, logits);
  }
  EXPECT_LE(undecided_, 6);
}

TEST_F(DeviceSampling, RulesOnLogitsAreTheHosts) {
  std::mt19937 rng(13);
  for (int i = 0; i < 40; ++i) {
    auto logits = random_logits(rng, 4, 3);
    SamplingParams params;
    params.temperature = i % 2 == 0 ? 0 : 0.8;
    params.top_p = 0.9;
    params.seed = i;
    params.repetition_penalty = i % 3 == 0 ? 1.7 : 1;
    params.presence_penalty = i % 4 == 1 ? 1.5 : 0;
    params.frequency_penalty = i % 4 == 2 ? -0.7 : 0;
    if (i % 5 == 0) params.logit_bias = {{7, 30}, {8, -100}, {99, 12.5}};
    params.min_tokens = i % 3;
    if (i % 7 == 0) params.bad = {"the", "a"};
    for (int r = 0; r < 4; ++r) {
      logits[static_cast<size_t>(r) * kVocab + 1] = 14;  // eos
      logits[static_cast<size_t>(r) * kVocab + 1000] = 15;
    }
    Drafts drafts;
    drafts.token_ids = {1000, 1000, 99};
    (void)expect_equal(params, drafts, logits);
  }
  EXPECT_LE(undecided_, 2);
}

TEST_F(DeviceSampling, DraftsAreJudgedAsOnTheHost) {
  std::mt19937 rng(14);
  int64_t accepted = 0;
  for (int i = 0; i < 60; ++i) {
    const auto logits = random_logits(rng, 4, 6);
    SamplingParams params;
    params.temperature = i % 2 == 0 ? 0 : 0.5;
    params.seed = i;
    // The host's own tokens as drafts, wrong from some place on.
    Drafts drafts;
    for (int64_t r = 0; r < 3; ++r) {
      const std::vector<float> row(logits.begin() + r * kVocab, logits.begin() + (r + 1) * kVocab);
      drafts.token_ids.push_back(sample(std::span<const float>(row), params, r).value());
    }
    if (i % 4 > 0) drafts.token_ids[static_cast<size_t>(i) % 4 - 1] = 5;
    const auto tokens = expect_equal(params, drafts, logits);
    accepted += static_cast<int64_t>(tokens.size());
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LE(undecided_, 1);
}

TEST_F(DeviceSampling, RelaxedAcceptanceIsTheHosts) {
  std::mt19937 rng(15);
  const auto think = tokenizer_->token_id("<think>");
  ASSERT_TRUE(think.has_value());
  prompt_.push_back(*think);
  for (int i = 0; i < 80; ++i) {
    auto logits = random_logits(rng, 3, 1);
    Drafts drafts;
    drafts.token_ids = {40, 41};
    for (int r = 0; r < 3; ++r) {
      logits[static_cast<size_t>(r) * kVocab + 50] = 14;
      logits[static_cast<size_t>(r) * kVocab + 40 + static_cast<size_t>(r)] =
          13.0F + 0.02F * static_cast<float>(i);
    }
    SamplingParams params;
    params.temperature = i % 2 == 0 ? 0 : 1;
    params.seed = i;
    (void)expect_equal(params, drafts, logits, {true, 1 + i % 3, 0.1 * (i % 5)});
  }
  EXPECT_LE(undecided_, 2);
}

TEST_F(DeviceSampling, AForcedTokenComesWhateverTheLogits) {
  std::mt19937 rng(16);
  const auto end = tokenizer_->token_id("</think>");
  ASSERT_TRUE(end.has_value());
  prompt_.push_back(*tokenizer_->token_id("<think>"));
  SamplingParams params;
  params.thinking_budget = 0;
  EXPECT_EQ(expect_equal(params, {}, random_logits(rng, 1, 3)), std::vector<int32_t>{*end});
  EXPECT_EQ(undecided_, 0);
}

TEST_F(DeviceSampling, ARowThatIsNoRowIsLeftToTheHost) {
  std::mt19937 rng(17);
  for (const float bad : {NAN, kInf}) {
    auto logits = random_logits(rng, 1, 3);
    logits[77777] = bad;
    for (const double temperature : {0.0, 1.0}) {
      SamplingParams params;
      params.temperature = temperature;
      (void)expect_equal(params, {}, logits);
    }
  }
  const std::vector<float> nothing(static_cast<size_t>(kVocab), -kInf);
  (void)expect_equal({}, {}, nothing);
  EXPECT_EQ(undecided_, 5);
}

TEST_F(DeviceSampling, LogProbabilitiesAreTheHosts) {
  std::mt19937 rng(19);
  const auto think = tokenizer_->token_id("<think>");
  ASSERT_TRUE(think.has_value());
  const std::vector<int32_t> prompt = prompt_;
  for (int i = 0; i < 72; ++i) {
    // Few values make ties at every rank; every third row has but 12 tokens that can be had.
    auto logits = random_logits(rng, 3, i % 2 == 0 ? 4 : 0.5F, i % 4 < 2 ? 0 : 0.5F);
    if (i % 3 == 0) {
      for (size_t at = 0; at < logits.size(); ++at) {
        if (at % kVocab % 10774 != 40 % 10774) logits[at] = -kInf;
      }
      logits[40] = -0.0F;
      logits[40 + 10774] = 0.0F;
    }
    SamplingParams params;
    params.logprobs = std::array{0, 1, 5, 20}[static_cast<size_t>(i / 3 % 4)];
    params.temperature = i % 5 == 0 ? 0 : 0.9;
    params.top_p = i % 7 == 0 ? 0.8 : 1;
    params.seed = i;
    if (i % 3 == 1)
      params.logit_bias = {{7, 30}, {40, -100}};  // the logits reported are the raw ones
    if (i % 3 == 2) params.repetition_penalty = 1.3;
    Drafts drafts;
    for (int64_t r = 0; r < 2; ++r) {
      const std::vector<float> row(logits.begin() + r * kVocab, logits.begin() + (r + 1) * kVocab);
      drafts.token_ids.push_back(argmax(row).value());
    }
    // Relaxed acceptance takes drafts that were not sampled.
    prompt_ = prompt;
    if (i % 2 == 1) prompt_.push_back(*think);
    (void)expect_equal(params, drafts, logits, {i % 2 == 1, 3, 0.5});
  }
  EXPECT_LE(undecided_, 2);
  prompt_ = prompt;
  SamplingParams params;
  params.logprobs = 2;
  (void)expect_equal(params, {}, std::vector<float>(static_cast<size_t>(kVocab), -kInf));
  auto logits = random_logits(rng, 1, 3);
  logits[5] = NAN;
  (void)expect_equal(params, {}, logits);
  EXPECT_EQ(windows_, 74);
}

// -inf is a token that can't be had, and no error.
TEST_F(DeviceSampling, OneTokenThatIsLeftIsTaken) {
  std::vector<float> logits(static_cast<size_t>(kVocab), -kInf);
  logits[4321] = -5;
  SamplingParams params;
  EXPECT_EQ(expect_equal(params, {}, logits), std::vector<int32_t>{4321});
  params.temperature = 0;
  EXPECT_EQ(expect_equal(params, {}, logits), std::vector<int32_t>{4321});
  EXPECT_EQ(undecided_, 0);
}

// A grammar's mask, also behind drafts, and a draft that the grammar forbids.
TEST_F(DeviceSampling, AGrammarsMaskIsKept) {
  std::mt19937 rng(18);
  std::vector<int32_t> eos = {1};
  GuidedCache grammars(std::make_shared<const TokenTrie>(*tokenizer_, kVocab, eos));
  SamplingParams params;
  params.temperature = 0.7;
  params.guided = Guided{Guided::Kind::kRegex, "[0-9]{4}", {}, true};
  for (int i = 0; i < 20; ++i) {
    params.seed = i;
    const auto logits = random_logits(rng, 2, 4);
    SamplingContext context;
    context.tokenizer = tokenizer_;
    context.vocab_size = kVocab;
    context.eos_token_ids = eos_;
    context.grammars = &grammars;
    Drafts drafts;
    drafts.token_ids = {tokenizer_->encode(i % 2 == 0 ? "7" : "x").value().back()};
    auto of_device = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    auto of_host = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    Device& device = kernels_->device();
    const Buffer buffer = device.allocate(logits.size() * sizeof(float)).value();
    ASSERT_TRUE(device.copy_to_device(buffer.data(), std::as_bytes(std::span(logits))));
    SampleRows asked;
    ASSERT_GE(of_device.prepare(drafts, 0, asked), 1);
    sampler_->sample({buffer.data(), DType::kF32, 2, kVocab, kVocab}, asked.rows);
    ASSERT_TRUE(device.synchronize());
    const auto window = of_device.finish(drafts, sampler_->results());
    ASSERT_TRUE(window.has_value());
    std::vector<float> copy = logits;
    Sampler sampler;
    const auto want =
        of_host.sample(drafts, {copy.data(), DType::kF32, 2, kVocab, kVocab}, sampler);
    ASSERT_TRUE(want.has_value());
    EXPECT_EQ(window->token_ids, want->token_ids);
  }
}

}  // namespace
}  // namespace nibble
