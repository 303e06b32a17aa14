#include "nibble/engine/logits_processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>

namespace nibble {
namespace {

using ::testing::ElementsAre;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

LogitsProcessor processor_of(const SamplingParams& params, LogitsFacts facts) {
  return LogitsProcessor::create(params, std::move(facts)).value();
}

// The logits after the processor, behind `output`.
std::vector<float> processed(const LogitsProcessor& processor, std::vector<float> logits,
                             const std::vector<int32_t>& prompt, const std::vector<int32_t>& output,
                             const TokenMask* mask = nullptr) {
  TokenCounts counts = processor.make_counts(prompt);
  for (const int32_t id : output) counts.push(id);
  const Status status = processor.apply(logits, counts, static_cast<int64_t>(output.size()), mask);
  EXPECT_TRUE(status.has_value());
  return logits;
}

TEST(LogitsProcessor, AddsBiasAndBansAtMinusHundred) {
  SamplingParams params;
  params.logit_bias = {{0, 2.5}, {2, -100}, {3, -99}};
  const auto p = processor_of(params, {.vocab_size = 4});
  EXPECT_FALSE(p.is_identity());
  EXPECT_THAT(processed(p, {1, 1, 1, 1}, {}, {}), ElementsAre(3.5F, 1, kMinusInfinity, -98));
}

// Repetition on what was seen anywhere: positive divided, negative multiplied. Token 0 only in the
// prompt, 1 in both, 2 twice in the output.
TEST(LogitsProcessor, RepetitionPenaltyCountsPromptAndOutputOnce) {
  SamplingParams params;
  params.repetition_penalty = 2;
  const auto p = processor_of(params, {.vocab_size = 5});
  EXPECT_THAT(processed(p, {4, -4, 4, 0, 4}, {0, 0, 1}, {1, 2, 2}), ElementsAre(2, -8, 2, 0, 4));
}

// 0.5 a time and 0.25 once, of the output only.
TEST(LogitsProcessor, PresenceAndFrequencyCountTheOutputOnly) {
  SamplingParams params;
  params.frequency_penalty = 0.5;
  params.presence_penalty = 0.25;
  const auto p = processor_of(params, {.vocab_size = 4});
  EXPECT_THAT(processed(p, {1, 1, 1, 1}, {0, 1}, {1, 2, 2}), ElementsAre(1, 0.25F, -0.25F, 1));
}

// (1 + 3) / 2 - 0.5: the bias is in what the repetition penalty divides, the others come last.
TEST(LogitsProcessor, BiasComesBeforeRepetitionAndThatBeforeFrequency) {
  SamplingParams params;
  params.logit_bias = {{0, 3}};
  params.repetition_penalty = 2;
  params.frequency_penalty = 0.5;
  const auto p = processor_of(params, {.vocab_size = 2});
  EXPECT_THAT(processed(p, {1, 1}, {}, {0}), ElementsAre(1.5F, 1));
}

TEST(LogitsProcessor, MinTokensMasksEosAndStopTokensByOutputPosition) {
  SamplingParams params;
  params.min_tokens = 2;
  params.stop_token_ids = {1};
  const LogitsFacts facts = {.vocab_size = 4, .eos_ids = {3}};
  const auto p = processor_of(params, facts);
  const std::vector<float> masked = {0, kMinusInfinity, 0, kMinusInfinity};
  EXPECT_EQ(processed(p, {0, 0, 0, 0}, {}, {}), masked);
  EXPECT_EQ(processed(p, {0, 0, 0, 0}, {}, {0}), masked);
  EXPECT_THAT(processed(p, {0, 0, 0, 0}, {}, {0, 0}), ElementsAre(0, 0, 0, 0));
  params.ignore_eos = true;  // then EOS is a token like any other
  EXPECT_THAT(processed(processor_of(params, facts), {0, 0, 0, 0}, {}, {}),
              ElementsAre(0, kMinusInfinity, 0, 0));
}

TEST(LogitsProcessor, ABadSequenceLosesItsLastTokenBehindTheOthers) {
  const auto p = processor_of({}, {.vocab_size = 4, .bad_sequences = {{1, 2, 3}, {0}}});
  EXPECT_THAT(processed(p, {5, 5, 5, 5}, {1, 2}, {}), ElementsAre(kMinusInfinity, 5, 5, 5));
  EXPECT_THAT(processed(p, {5, 5, 5, 5}, {}, {3, 1, 2}),
              ElementsAre(kMinusInfinity, 5, 5, kMinusInfinity));
  EXPECT_THAT(processed(p, {5, 5, 5, 5}, {}, {1, 2, 1}), ElementsAre(kMinusInfinity, 5, 5, 5));
}

// With the demo checkpoint's tokenizer: each sequence spells the text, alone or behind a space, and
// no two are alike.
TEST(LogitsProcessor, BadTextsBecomeTheirTokenSequences) {
  const auto tokenizer = Tokenizer::load(NIBBLE_SOURCE_DIR "/models/demo").value();
  const std::vector<std::string> texts = {"the question", "<think>"};
  const auto sequences = bad_sequences(tokenizer, texts).value();
  ASSERT_GE(sequences.size(), 2U);
  std::set<std::vector<int32_t>> distinct;
  std::set<std::string> spelled;
  for (const auto& ids : sequences) {
    std::string text = tokenizer.decode(ids, false);
    if (!text.empty() && text.front() == ' ') text.erase(0, 1);
    spelled.insert(text);
    distinct.insert(ids);
    // "<think>" is banned as plain text; the tag is a token of its own.
    EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.token_id("<think>").value_or(-1)), 0);
  }
  EXPECT_EQ(spelled, (std::set<std::string>{"the question", "<think>"}));
  EXPECT_EQ(distinct.size(), sequences.size());
  EXPECT_FALSE(bad_sequences(tokenizer, std::vector<std::string>{"\xff"}).has_value());
}

TEST(LogitsProcessor, ForbiddenIdsAndTheGrammarsMaskLeaveNothingElse) {
  const auto p = processor_of({}, {.vocab_size = 70, .forbidden_ids = {65}});
  TokenMask mask(70);
  for (const int64_t id : {3, 65, 69}) mask.allow(id);
  const auto logits = processed(p, std::vector<float>(70, 1), {}, {}, &mask);
  for (int i = 0; i < 70; ++i) {
    EXPECT_EQ(logits[static_cast<size_t>(i)], i == 3 || i == 69 ? 1 : kMinusInfinity) << i;
  }
}

TEST(LogitsProcessor, NoTokenLeftIsAnErrorOfThisRequest) {
  const auto p = processor_of({}, {.vocab_size = 3, .forbidden_ids = {1}});
  TokenMask mask(3);
  mask.allow(1);
  std::vector<float> logits = {1, 2, 3};
  const Status status = p.apply(logits, p.make_counts({}), 0, &mask);
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(status.error().message, "no token allowed");
}

TEST(LogitsProcessor, ABadLogitIsFoundEvenWhereAMaskWouldHideIt) {
  const auto p = processor_of({}, {.vocab_size = 3, .forbidden_ids = {1}});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -kMinusInfinity}) {
    std::vector<float> logits = {1, bad, 3};
    const Status status = p.apply(logits, p.make_counts({}), 0, nullptr);
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  }
}

TEST(LogitsProcessor, IdsOutsideTheVocabularyAreRefused) {
  SamplingParams params;
  params.logit_bias[5] = 1;
  EXPECT_FALSE(LogitsProcessor::create(params, {.vocab_size = 5}).has_value());
  EXPECT_FALSE(
      LogitsProcessor::create({}, {.vocab_size = 5, .bad_sequences = {{1, 5}}}).has_value());
  EXPECT_TRUE(processor_of({}, {.vocab_size = 5}).is_identity());
}

TEST(LogitsProcessor, AForcedTokenIsTheOnlyOne) {
  std::vector<float> logits = {1, kMinusInfinity, 3};
  force_token(logits, 1);
  EXPECT_THAT(logits, ElementsAre(kMinusInfinity, 0, kMinusInfinity));
}

// The counts after random pushes and pops are those of a sequence that never saw what was popped.
TEST(TokenCounts, PoppedTokensLeaveNoTrace) {
  std::mt19937 rng(3);
  const std::vector<int32_t> prompt = {1, 4, 4};
  TokenCounts counts(prompt);
  std::vector<int32_t> output;
  for (int round = 0; round < 2000; ++round) {
    const size_t pushes = rng() % 4;
    for (size_t i = 0; i < pushes; ++i) {
      output.push_back(static_cast<int32_t>(rng() % 8));
      counts.push(output.back());
    }
    const size_t pops = std::min<size_t>(rng() % 4, output.size());
    output.resize(output.size() - pops);
    counts.pop(pops);
    ASSERT_EQ(counts.output(), output);
    TokenCounts fresh(prompt);
    for (const int32_t id : output) fresh.push(id);
    ASSERT_EQ(counts.counts().size(), fresh.counts().size());
    for (const auto& [id, count] : fresh.counts()) {
      ASSERT_TRUE(counts.counts().contains(id));
      EXPECT_EQ(counts.counts().at(id).output, count.output);
      EXPECT_EQ(counts.counts().at(id).in_prompt, count.in_prompt);
    }
  }
}

}  // namespace
}  // namespace nibble
