// SequenceSampler's rows for a device: a plain loop that does what SampleRow says gives the tokens
// of SequenceSampler::sample().
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "nibble/engine/local_passes.h"
#include "nibble/engine/padded_batch.h"
#include "nibble/engine/sequence_sampler.h"
#include "nibble/tokenizer/tokenizer.h"
#include "tests/engine/told_sampler.h"

namespace nibble {
namespace {

constexpr int64_t kRowVocab = 4096;

const Tokenizer& demo_tokenizer() {
  static const Tokenizer kTokenizer = Tokenizer::load(NIBBLE_SOURCE_DIR "/models/demo").value();
  return kTokenizer;
}

class SequenceRows : public ::testing::Test {
 protected:
  void compare(const SamplingParams& params, const std::vector<int32_t>& drafts,
               RelaxedThinking relaxed = {}) {
    SamplingContext context;
    context.tokenizer = &demo_tokenizer();
    context.vocab_size = kRowVocab;
    context.eos_token_ids = eos_;
    context.relaxed = relaxed;
    context.grammars = &grammars_;
    Drafts drafted;
    drafted.token_ids = drafts;
    auto by_rows = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    auto by_logits = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    const auto rows = static_cast<int64_t>(drafts.size()) + 1;
    // Several windows in turn, so that output counts, too.
    for (int step = 0; step < 3; ++step) {
      std::vector<float> values(static_cast<size_t>(rows * kRowVocab));
      std::normal_distribution<float> normal(0, 3);
      for (float& value : values) value = normal(rng_);
      for (int64_t r = 0; r < rows && r < static_cast<int64_t>(drafts.size()); ++r) {
        values[static_cast<size_t>(r * kRowVocab + drafts[static_cast<size_t>(r)])] += 12;
      }
      const MatrixView logits{values.data(), DType::kF32, rows, kRowVocab, kRowVocab};
      SampleRows asked;
      const int64_t count = by_rows.prepare(drafted, 0, asked);
      ASSERT_GE(count, 1);
      ASSERT_EQ(static_cast<size_t>(count), asked.rows.size());
      std::vector<SampledRow> sampled;
      for (const SampleRow& row : asked.rows) {
        sampled.push_back(testing::sample_as_told(logits, row));
        EXPECT_EQ(row.logprobs, params.logprobs.value_or(-1));
        if (row.logprobs < 0) continue;
        SampledRow& told = sampled.back();
        told.logprobs =
            testing::logprobs_as_told(logits, row, told.accepted != 0 ? row.draft : told.token);
      }
      const auto got = by_rows.finish(drafted, sampled);
      Sampler sampler;
      const auto want = by_logits.sample(drafted, logits, sampler);
      ASSERT_TRUE(got.has_value());
      ASSERT_TRUE(want.has_value());
      EXPECT_EQ(got->token_ids, want->token_ids);
      EXPECT_EQ(got->text, want->text);
      EXPECT_EQ(got->num_accepted, want->num_accepted);
      EXPECT_EQ(got->ended, want->ended);
      ASSERT_EQ(got->logprobs.size(), want->logprobs.size());
      for (size_t i = 0; i < want->logprobs.size(); ++i) {
        const PositionLogprobs& mine = got->logprobs[i];
        const PositionLogprobs& hosts = want->logprobs[i];
        EXPECT_EQ(mine.chosen.id, hosts.chosen.id);
        EXPECT_EQ(mine.chosen.rank, hosts.chosen.rank);
        EXPECT_EQ(mine.chosen.logprob, hosts.chosen.logprob);
        ASSERT_EQ(mine.top.size(), hosts.top.size());
        for (size_t j = 0; j < hosts.top.size(); ++j) {
          EXPECT_EQ(mine.top[j].id, hosts.top[j].id);
          EXPECT_EQ(mine.top[j].rank, hosts.top[j].rank);
          EXPECT_EQ(mine.top[j].logprob, hosts.top[j].logprob);
        }
      }
      accepted_ += want->num_accepted;
      if (want->ended) return;
    }
  }

  std::mt19937 rng_{5};
  std::vector<int32_t> prompt_ = {0, 40, 41, 40};
  std::vector<int64_t> eos_ = {1};
  GuidedCache grammars_{
      std::make_shared<const TokenTrie>(demo_tokenizer(), kRowVocab, std::vector<int32_t>{1})};
  int64_t accepted_ = 0;
};

TEST_F(SequenceRows, SayAllRulesOfARequest) {
  for (int i = 0; i < 24; ++i) {
    SamplingParams params;
    params.seed = i;
    params.temperature = i % 2 == 0 ? 0 : 0.8;
    params.top_p = i % 3 == 0 ? 0.9 : 1;
    params.top_k = i % 5 == 0 ? 40 : 0;
    params.min_p = i % 7 == 0 ? 0.1 : 0;
    params.repetition_penalty = i % 4 == 0 ? 1.5 : 1;
    params.presence_penalty = i % 4 == 1 ? 1 : 0;
    params.frequency_penalty = i % 4 == 2 ? 0.5 : 0;
    if (i % 3 == 1) params.logit_bias = {{50, 20}, {51, -100}};
    if (i % 6 == 5) params.bad = {"the"};
    params.min_tokens = i % 4;
    if (i % 3 == 0) params.logprobs = i % 20;
    compare(params, i % 2 == 0 ? std::vector<int32_t>{40, 41, 40} : std::vector<int32_t>{});
  }
  EXPECT_GT(accepted_, 3);
}

TEST_F(SequenceRows, SayAGrammarAndStopWhereADraftLeavesIt) {
  SamplingParams params;
  params.guided = Guided{Guided::Kind::kRegex, "[0-9]{8}", {}, true};
  const int32_t seven = demo_tokenizer().encode("7").value().back();
  for (int i = 0; i < 6; ++i) {
    params.seed = i;
    compare(params, {seven, i % 2 == 0 ? seven : 900, seven});
  }
}

TEST_F(SequenceRows, SayRelaxedAcceptanceAndForcedTokens) {
  prompt_.push_back(*demo_tokenizer().token_id("<think>"));
  SamplingParams params;
  for (int i = 0; i < 12; ++i) {
    params.seed = i;
    params.temperature = i % 2 == 0 ? 0 : 1;
    params.thinking_budget = i % 3 == 0 ? std::optional<int64_t>(2) : std::nullopt;
    if (i % 4 < 2) params.logprobs = 3;
    compare(params, {60, 61}, {true, 3, 0.4});
  }
  EXPECT_GT(accepted_, 5);
}

TEST_F(SequenceRows, AreNotForProcessedLogprobsAndDraftsThatTheHostDrew) {
  SamplingContext context;
  context.tokenizer = &demo_tokenizer();
  context.vocab_size = kRowVocab;
  context.eos_token_ids = eos_;
  SamplingParams params;
  params.logprobs = 1;
  SampleRows asked;
  auto with_logprobs = SequenceSampler::create(context, params, 0, prompt_, 10).value();
  EXPECT_EQ(with_logprobs.prepare({}, 0, asked), 1);
  asked.clear();
  context.processed_logprobs = true;
  auto with_processed = SequenceSampler::create(context, params, 0, prompt_, 10).value();
  EXPECT_EQ(with_processed.prepare({}, 0, asked), 0);
  Drafts drawn;
  WeightRows rows(1);
  drawn.add(7, {}, rows.take());
  auto plain = SequenceSampler::create(context, {}, 0, prompt_, 10).value();
  EXPECT_EQ(plain.prepare(drawn, 0, asked), 2);
  asked.clear();
  drawn.add(7, {{7, 1.0}}, nullptr);
  EXPECT_EQ(plain.prepare(drawn, 0, asked), 0);
  EXPECT_TRUE(asked.rows.empty());
}

TEST_F(SequenceRows, AnUndecidedRowLeavesTheWindowToTheHost) {
  SamplingContext context;
  context.tokenizer = &demo_tokenizer();
  context.vocab_size = kRowVocab;
  context.eos_token_ids = eos_;
  auto sampler = SequenceSampler::create(context, {}, 0, prompt_, 10).value();
  Drafts drafts;
  drafts.token_ids = {7};
  const SampledRow token{SampledRow::kToken, 7, 0};
  const SampledRow other{SampledRow::kToken, 8, 0};
  EXPECT_FALSE(sampler.finish(drafts, std::vector<SampledRow>{SampledRow(), token}).has_value());
  EXPECT_FALSE(sampler.finish(drafts, std::vector<SampledRow>{token, SampledRow()}).has_value());
  // Behind a refused draft it does not matter.
  const auto window = sampler.finish(drafts, std::vector<SampledRow>{other, SampledRow()});
  ASSERT_TRUE(window.has_value());
  EXPECT_EQ(window->token_ids, std::vector<int32_t>{8});
}

// Drafts drawn by rows and by logits, then judged: the same tokens, whichever draft is the first to
// be refused, and whether the weights of some have to be fetched.
TEST_F(SequenceRows, DrawDraftsAndJudgeThemAsTheHostDoes) {
  SamplingContext context;
  context.tokenizer = &demo_tokenizer();
  context.vocab_size = kRowVocab;
  context.eos_token_ids = eos_;
  context.grammars = &grammars_;
  std::vector<int> accepted(4);
  for (int i = 0; i < 240; ++i) {
    SamplingParams params;
    params.seed = i;
    params.temperature = i % 2 == 0 ? 1 : 0.7;
    params.top_p = i % 3 == 0 ? 0.9 : 1;
    params.top_k = i % 5 == 0 ? 40 : 0;
    params.min_p = i % 7 == 0 ? 0.05 : 0;
    if (i % 4 == 0) params.repetition_penalty = 1.3;
    if (i % 6 == 5) params.logprobs = 2;
    if (i % 8 == 7) params.guided = Guided{Guided::Kind::kRegex, "[0-9]{9}", {}, true};
    auto by_rows = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    auto by_logits = SequenceSampler::create(context, params, 0, prompt_, 100).value();
    // The target's logits are near the drafts'.
    std::vector<float> values(4 * kRowVocab);
    std::vector<float> draft_values(4 * kRowVocab);
    std::normal_distribution<float> normal(0, 3);
    std::normal_distribution<float> noise(0, 0.1F * static_cast<float>(i % 6));
    for (size_t at = 0; at < values.size(); ++at) {
      draft_values[at] = normal(rng_);
      values[at] = draft_values[at] + noise(rng_);
    }
    WeightRows free(5);
    testing::KeptWeights kept;
    Drafts mine;
    Drafts hosts;
    Sampler sampler;
    for (int64_t d = 0; d < 3; ++d) {
      const MatrixView view{draft_values.data(), DType::kF32, 4, kRowVocab, kRowVocab};
      SampleRows asked;
      WeightRow row = free.take();
      ASSERT_TRUE(by_rows.prepare_proposal(mine, d, row, asked));
      ASSERT_EQ(asked.rows.size(), 1U);
      mine.add(testing::sample_as_told(view, asked.rows[0], &kept).token, {}, std::move(row));
      std::vector<float> copy(view.row<float>(d), view.row<float>(d) + kRowVocab);
      ASSERT_TRUE(by_logits.propose(copy, true, sampler, hosts));
    }
    EXPECT_EQ(mine.token_ids, hosts.token_ids);
    EXPECT_EQ(free.num_free(), 2);
    const MatrixView logits{values.data(), DType::kF32, 4, kRowVocab, kRowVocab};
    SampleRows asked;
    ASSERT_GE(by_rows.prepare(mine, 0, asked), 1);
    std::vector<SampledRow> sampled;
    for (const SampleRow& row : asked.rows) {
      sampled.push_back(testing::sample_as_told(logits, row, &kept));
      SampledRow& told = sampled.back();
      if (row.logprobs < 0) continue;
      told.logprobs =
          testing::logprobs_as_told(logits, row, told.accepted != 0 ? row.draft : told.token);
    }
    for (size_t d = 0; d < 3; ++d) {
      const auto& weights = kept.at(static_cast<int32_t>(*mine.rows[d])).weights;
      const Distribution fetched = by_rows.draft_distribution(weights);
      ASSERT_EQ(fetched.size(), hosts.distributions[d].size());
      for (size_t at = 0; at < fetched.size(); ++at) {
        ASSERT_EQ(fetched[at].id, hosts.distributions[d][at].id);
        ASSERT_EQ(fetched[at].probability, hosts.distributions[d][at].probability);
      }
    }
    const auto got = by_rows.finish(mine, sampled);
    const auto want = by_logits.sample(hosts, logits, sampler);
    ASSERT_TRUE(got.has_value() && want.has_value());
    EXPECT_EQ(got->token_ids, want->token_ids);
    EXPECT_EQ(got->num_accepted, want->num_accepted);
    EXPECT_EQ(got->logprobs.size(), want->logprobs.size());
    ++accepted[static_cast<size_t>(want->num_accepted)];
    mine.clear();
    EXPECT_EQ(free.num_free(), 5);
  }
  for (const int count : accepted) EXPECT_GE(count, 8);
}

TEST(WeightRows, AreFreeWhenTheirLastOwnerIsGone) {
  auto rows = std::make_unique<WeightRows>(2);
  WeightRow first = rows->take();
  WeightRow second = rows->take();
  EXPECT_EQ(*first, 0);
  EXPECT_EQ(*second, 1);
  EXPECT_EQ(rows->take(), nullptr);
  WeightRow copy = second;
  second = nullptr;
  EXPECT_EQ(rows->num_free(), 0);
  copy = nullptr;
  EXPECT_EQ(rows->num_free(), 1);
  rows.reset();
  first = nullptr;
}

TEST(PaddedBatch, RepeatsItsLastTokenUpToARecordedSize) {
  const std::vector<int32_t> table = {3, 4};
  const std::vector<int32_t> ids = {10, 11, 12};
  const std::vector<AttentionSegment> segments = {{0, 1, 5, table.data(), MlaForm::kAbsorbed, 0},
                                                  {1, 2, 8, table.data(), MlaForm::kAbsorbed, 1}};
  const Batch batch{ids, AttentionBatch{3, segments}};
  const std::vector<int64_t> sizes = {1, 2, 5, 200};
  EXPECT_EQ(recorded_size(batch, sizes), 5);
  EXPECT_EQ(recorded_size(batch, std::vector<int64_t>{2}), 0);
  EXPECT_EQ(recorded_size(batch, std::vector<int64_t>{200}), 0);  // another way of rounding
  const PaddedBatch padded(batch, 5);
  const Batch full = padded.batch();
  EXPECT_EQ(std::vector<int32_t>(full.token_ids.begin(), full.token_ids.end()),
            (std::vector<int32_t>{10, 11, 12, 12, 12}));
  ASSERT_EQ(full.attention.segments.size(), 4U);
  EXPECT_EQ(full.attention.num_tokens, 5);
  for (size_t i = 2; i < 4; ++i) {
    const AttentionSegment& copy = full.attention.segments[i];
    EXPECT_EQ(copy.first_token, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(copy.num_tokens, 1);
    EXPECT_EQ(copy.first_position, 9);
    EXPECT_EQ(copy.slot_offset, 1);
    EXPECT_EQ(copy.block_table, table.data());
  }
  std::vector<AttentionSegment> prompt = segments;
  prompt[1].form = MlaForm::kExpanded;
  EXPECT_EQ(recorded_size({ids, AttentionBatch{3, prompt}}, sizes), 0);
}

// With attention data parallel all ranks take the size of the fullest.
TEST(PaddedBatch, RanksAreRecordedWithOneSizeOrNotAtAll) {
  const std::vector<int64_t> sizes = {1, 2, 5, 127, 200};
  const auto of = [&](std::vector<int64_t> rows) { return recorded_size(rows, sizes); };
  EXPECT_EQ(of({1, 1}), 1);
  EXPECT_EQ(of({1, 4}), 5);
  EXPECT_EQ(of({5, 0}), 0);  // one has nothing to fill up
  EXPECT_EQ(of({128, 200}), 200);
  EXPECT_EQ(of({100, 130}), 0);  // another way of rounding
  EXPECT_EQ(of({1, 201}), 0);
  EXPECT_EQ(of({64, 40, 40}), 0);       // 144 of all ranks would be 381: another way of rounding
  EXPECT_EQ(of({5, 1, 1, 1}), 0);       // 8 would be 20
  EXPECT_EQ(of({128, 128, 128}), 200);  // above anyway
}

TEST(StepGraphSizes, HoldAFullStepAndWhatIsAskedFor) {
  EXPECT_EQ(step_graph_sizes({}, 1, 0), (std::vector<int64_t>{1}));
  EXPECT_EQ(step_graph_sizes({}, 5, 1), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 10}));
  EXPECT_EQ(step_graph_sizes({}, 1000, 3).back(), 127);
  EXPECT_EQ(step_graph_sizes(std::vector<int64_t>{4, 1}, 8, 2),
            (std::vector<int64_t>{1, 3, 4, 12}));
}

}  // namespace
}  // namespace nibble
