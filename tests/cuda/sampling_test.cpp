// A DeviceSampler's tokens against the host's, from the same logits: equal, or left to the host.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "nibble/engine/sequence_sampler.h"
#include "nibble/kernels/registry.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kVocab = 129280;  // R1's

class DeviceSampling : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    tokenizer_ = new Tokenizer(Tokenizer::load(NIBBLE_SOURCE_DIR "/models/demo").value());
  }
  static void TearDownTestSuite() { delete tokenizer_; }
  void SetUp() override {
    kernels_ = make_kernels("cuda").value();
    sampler_ = kernels_->make_sampler(kVocab).value();
    ASSERT_NE(sampler_, nullptr);
  }

  SequenceSampler make(const SamplingParams& params, RelaxedThinking relaxed = {}) const {
    SamplingContext context;
    context.tokenizer = tokenizer_;
    context.vocab_size = kVocab;
    context.eos_token_ids = eos_;
    context.relaxed = relaxed;
    return SequenceSampler::create(context, params, 0, prompt_, 1000).value();
  }

  // Both ways from the same rows; the host's tokens. Counts in undecided_ what the device left.
  std::vector<int32_t> expect_equal(const SamplingParams& params, const Drafts& drafts,
                                    const std::vector<float>& logits,
                                    RelaxedThinking relaxed = {}) {
    const auto rows = static_cast<int64_t>(logits.size()) / kVocab;
    Device& device = kernels_->device();
    // Two rows of NaN in front, so that a wrong row or a leftover shows.
    std::vector<float> padded(2 * kVocab, NAN);
    padded.insert(padded.end(), logits.begin(), logits.end());
    const Buffer buffer = device.allocate(padded.size() * sizeof(float)).value();
    EXPECT_TRUE(device.copy_to_device(buffer.data(), std::as_bytes(std::span(padded))));
    const MatrixView view{buffer.data(), DType::kF32, rows + 2, kVocab, kVocab};

    SequenceSampler of_device = make(params, relaxed);
    SampleRows asked;
    const int64_t count = of_device.prepare(drafts, 2, asked);
    EXPECT_GE(count, 1);
    sampler_->sample(view, asked.rows);
    EXPECT_TRUE(device.synchronize());
    const auto window = of_device.finish(drafts, sampler_->results());
    // The logits stay as they are: the host may need them.
    std::vector<float> after(padded.size());
    EXPECT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(after)), buffer.data()));
    EXPECT_EQ(0, std::memcmp(after.data(), padded.data(), after.size() * sizeof(float)));

    SequenceSampler of_host = make(params, relaxed);
    std::vector<float> copy = logits;
    Sampler sampler;
    const auto want =
        of_host.sample(drafts, {copy.data(), DType::kF32, rows, kVocab, kVocab}, sampler);
    ++windows_;
    if (!window) {
      ++undecided_;
      return {};
    }
    EXPECT_TRUE(want.has_value());
    if (!want) return {};
    EXPECT_EQ(window->token_ids, want->token_ids);
    EXPECT_EQ(window->num_accepted, want->num_accepted);
    EXPECT_EQ(window->text, want->text);
    EXPECT_EQ(window->logprobs.size(), want->logprobs.size());
    for (size_t i = 0; i < std::min(window->logprobs.size(), want->logprobs.size()); ++i) {
      expect_equal(window->logprobs[i].chosen, want->logprobs[i].chosen);
      const auto& got_top = window->logprobs[i].top;
      const auto& want_top = want->logprobs[i].top;
      EXPECT_EQ(got_top.size(), want_top.size());
      for (size_t j = 0; j < std::min(got_top.size(), want_top.size()); ++j) {
        expect_equal(got_top[j], want_top[j]);
      }
    }
    return want->token_ids;
  }

  // Sums differ in their order alone.
  static void expect_equal(const TokenLogprob& got, const TokenLogprob& want) {
    EXPECT_EQ(got.id, want.id);
    EXPECT_EQ(got.rank, want.rank);
    if (got.logprob != want.logprob) {
      EXPECT_NEAR(got.logprob, want.logprob, 1e-11);
    }
  }

  static Tokenizer* tokenizer_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<DeviceSampler> sampler_;
  std::vector<int32_t> prompt_ = {0, 17, 99, 1000, 1000};
  std::vector<int64_t> eos_ = {1};
  int windows_ = 0;
  int undecided_ = 0;
};

Tokenizer* DeviceSampling::tokenizer_ = nullptr;

// Like a model's: a few large ones over a broad rest. `step` > 0 rounds them, which makes ties.
std::vector<float> random_logits(std::mt19937& rng, int64_t rows, float spread, float step = 0) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(rows * kVocab));
  for (float& x : logits) {
    x = normal(rng);
    if (step > 0) x = std::round(x / step) * step;
  }
  return logits;
}

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

// Drafts drawn on the device, from rows that it keeps, and their judgement.
class DrawnDrafts : public DeviceSampling {
 protected:
  static constexpr int64_t kDrafts = 3;
  static constexpr int64_t kSequences = 8;
  struct Made {
    SequenceSampler of_device;
    SequenceSampler of_host;
    Drafts device_drafts;
    Drafts host_drafts;
    bool draws = false;
  };

  void make_sampler(int64_t vocab) {
    vocab_ = vocab;
    sampler_ = kernels_->make_sampler(vocab).value();
    ASSERT_TRUE(sampler_->reserve_weights(kDrafts * kSequences));
    grammars_ = std::make_unique<GuidedCache>(
        std::make_shared<const TokenTrie>(*tokenizer_, vocab, std::vector<int32_t>{1}));
  }

  // What sort of request, by its place in the batch: most draw their drafts.
  Made make_sequence(int batch, int64_t place) {
    const int i = batch * static_cast<int>(kSequences) + static_cast<int>(place);
    SamplingParams params;
    params.seed = i;
    params.temperature = place == 0 ? 0 : std::array{1.0, 0.6, 1.5}[static_cast<size_t>(i) % 3];
    params.top_p = i % 3 == 0 ? 0.9 : 1;
    params.top_k = i % 5 == 0 ? 50 : 0;
    params.min_p = i % 7 == 0 ? 0.02 : 0;
    if (i % 4 == 0) params.repetition_penalty = 1.2;
    if (i % 6 == 5) params.logprobs = 2;
    if (place == 2) params.guided = Guided{Guided::Kind::kRegex, "[0-9]{9}", {}, true};
    SamplingContext context;
    context.tokenizer = tokenizer_;
    context.vocab_size = vocab_;
    context.eos_token_ids = eos_;
    context.grammars = grammars_.get();
    std::vector<int32_t> prompt = prompt_;
    if (place == 3) {
      context.relaxed = {true, 3, 0.3};
      prompt.push_back(*tokenizer_->token_id("<think>"));
    }
    const auto make = [&] {
      return SequenceSampler::create(context, params, 0, prompt, 100).value();
    };
    return {make(), make(), {}, {}, place > 1};  // 1: drawn, with drafts that are argmaxes
  }

  const SampledRow* sample(const std::vector<float>& logits, const std::vector<SampleRow>& rows) {
    Device& device = kernels_->device();
    buffer_ = device.allocate(logits.size() * sizeof(float)).value();
    EXPECT_TRUE(device.copy_to_device(buffer_.data(), std::as_bytes(std::span(logits))));
    const auto count = static_cast<int64_t>(logits.size()) / vocab_;
    sampler_->sample({buffer_.data(), DType::kF32, count, vocab_, vocab_}, rows);
    EXPECT_TRUE(device.synchronize());
    return sampler_->results().data();
  }

  // One step of a batch: kDrafts drafts of each sequence from `draft_logits` [kDrafts][kSequences],
  // judged by `logits` [kSequences][kDrafts + 1].
  void step(int batch, const std::vector<std::vector<float>>& draft_logits,
            const std::vector<float>& logits) {
    std::vector<Made> all;
    for (int64_t place = 0; place < kSequences; ++place) all.push_back(make_sequence(batch, place));
    WeightRows free(kDrafts * kSequences);
    Sampler sampler;
    for (const auto& rows : draft_logits) {
      SampleRows asked;
      std::vector<WeightRow> kept(static_cast<size_t>(kSequences));
      std::vector<int64_t> places;
      for (int64_t place = 0; place < kSequences; ++place) {
        Made& made = all[static_cast<size_t>(place)];
        auto& row = kept[static_cast<size_t>(place)];
        if (made.draws) row = free.take();
        if (made.of_device.prepare_proposal(made.device_drafts, place, row, asked)) {
          places.push_back(place);
        }
      }
      const SampledRow* const results = sample(rows, asked.rows);
      const std::vector<SampledRow> sampled(results, results + places.size());
      size_t next = 0;
      for (int64_t place = 0; place < kSequences; ++place) {
        Made& made = all[static_cast<size_t>(place)];
        std::vector<float> copy(rows.begin() + place * vocab_, rows.begin() + (place + 1) * vocab_);
        const bool has_draft = made.of_host.propose(copy, made.draws, sampler, made.host_drafts);
        const bool was_asked = next < places.size() && places[next] == place;
        const SampledRow of_device = was_asked ? sampled[next++] : SampledRow();
        ++drafts_;
        if (of_device.outcome != SampledRow::kToken) {
          ++undecided_drafts_;
          if (has_draft && made.draws) {
            made.device_drafts.add(made.host_drafts.token_ids.back(),
                                   made.host_drafts.distributions.back(), nullptr);
          }
          continue;
        }
        ASSERT_TRUE(has_draft);
        EXPECT_EQ(of_device.token, made.host_drafts.token_ids.back());
        if (!made.draws) {
          made.device_drafts.token_ids.push_back(of_device.token);
          continue;
        }
        auto& row = kept[static_cast<size_t>(place)];
        std::vector<float> weights(static_cast<size_t>(vocab_));
        ASSERT_TRUE(sampler_->copy_weights(*row, weights));
        const Distribution fetched = made.of_device.draft_distribution(weights);
        const Distribution& want = made.host_drafts.distributions.back();
        ASSERT_EQ(fetched.size(), want.size());
        for (size_t at = 0; at < want.size(); ++at) {
          ASSERT_EQ(fetched[at].id, want[at].id);
          ASSERT_EQ(fetched[at].probability, want[at].probability);
        }
        made.device_drafts.add(of_device.token, {}, std::move(row));
      }
    }
    judge(all, logits);
  }

  void judge(std::vector<Made>& all, const std::vector<float>& logits) {
    SampleRows asked;
    std::vector<int64_t> counts;
    const int64_t window = kDrafts + 1;
    for (int64_t place = 0; place < kSequences; ++place) {
      Made& made = all[static_cast<size_t>(place)];
      EXPECT_EQ(made.device_drafts.token_ids, made.host_drafts.token_ids);
      counts.push_back(made.of_device.prepare(made.device_drafts, place * window, asked));
    }
    const SampledRow* results = sample(logits, asked.rows);
    Sampler sampler;
    for (int64_t place = 0; place < kSequences; ++place) {
      Made& made = all[static_cast<size_t>(place)];
      ++windows_;
      const auto count = static_cast<size_t>(counts[static_cast<size_t>(place)]);
      const auto got =
          count > 0 ? made.of_device.finish(made.device_drafts, {results, count}) : std::nullopt;
      results += count;
      std::vector<float> copy(logits.begin() + place * window * vocab_,
                              logits.begin() + (place + 1) * window * vocab_);
      const int64_t rows = made.host_drafts.size() + 1;
      const auto want = made.of_host.sample(
          made.host_drafts, {copy.data(), DType::kF32, rows, vocab_, vocab_}, sampler);
      if (!got) {
        ++undecided_;
        continue;
      }
      ASSERT_TRUE(want.has_value());
      EXPECT_EQ(got->token_ids, want->token_ids) << "place " << place;
      EXPECT_EQ(got->num_accepted, want->num_accepted);
      EXPECT_EQ(got->text, want->text);
      ASSERT_EQ(got->logprobs.size(), want->logprobs.size());
      for (size_t i = 0; i < want->logprobs.size(); ++i) {
        expect_equal(got->logprobs[i].chosen, want->logprobs[i].chosen);
      }
      if (made.draws && place > 3 && made.host_drafts.size() == kDrafts) {
        ++accepted_[static_cast<size_t>(want->num_accepted)];
      }
    }
  }

  // Batches whose target differs from the drafts' logits by normal noise of several widths.
  void run(int64_t vocab, int batches, float step_of_logits, bool spoil) {
    make_sampler(vocab);
    std::mt19937 rng(21);
    for (int batch = 0; batch < batches; ++batch) {
      std::normal_distribution<float> normal(0, std::array{1.0F, 3.0F, 6.0F}[batch % 3]);
      std::normal_distribution<float> noise(0, 0.2F * static_cast<float>(batch % 5) + 1e-6F);
      const auto rounded = [&](float x) {
        return step_of_logits > 0 ? std::round(x / step_of_logits) * step_of_logits : x;
      };
      std::vector<std::vector<float>> drafts;
      for (int64_t d = 0; d < kDrafts; ++d) {
        auto& rows = drafts.emplace_back(static_cast<size_t>(kSequences * vocab));
        for (float& x : rows) x = rounded(normal(rng));
      }
      std::vector<float> logits(static_cast<size_t>(kSequences * (kDrafts + 1) * vocab));
      for (int64_t place = 0; place < kSequences; ++place) {
        for (int64_t d = 0; d <= kDrafts; ++d) {
          for (int64_t i = 0; i < vocab; ++i) {
            const float x =
                d < kDrafts ? drafts[static_cast<size_t>(d)][static_cast<size_t>(place * vocab + i)]
                            : normal(rng);
            logits[static_cast<size_t>((place * (kDrafts + 1) + d) * vocab + i)] =
                rounded(x + noise(rng));
          }
        }
      }
      if (spoil) {  // a NaN where a draft is drawn, and where one is judged
        drafts[static_cast<size_t>(batch) % 3][static_cast<size_t>(4 * vocab + 77)] = NAN;
        logits[static_cast<size_t>((5 * (kDrafts + 1) + batch % 4) * vocab + 99)] = NAN;
      }
      step(batch, drafts, logits);
    }
    std::cout << vocab << " tokens: " << windows_ << " windows, " << undecided_ << " undecided; "
              << drafts_ << " drafts, " << undecided_drafts_
              << " undecided; accepted 0 .. 3: " << accepted_[0] << ", " << accepted_[1] << ", "
              << accepted_[2] << ", " << accepted_[3] << "\n";
  }

  int64_t vocab_ = 0;
  std::unique_ptr<GuidedCache> grammars_;
  Buffer buffer_;
  int drafts_ = 0;
  int undecided_drafts_ = 0;
  std::array<int, kDrafts + 1> accepted_ = {};
};

TEST_F(DrawnDrafts, AreDrawnAndJudgedAsOnTheHost) {
  run(kVocab, 25, 0, false);
  EXPECT_LE(undecided_, 2);
  EXPECT_LE(undecided_drafts_, 2);
  for (const int count : accepted_) EXPECT_GE(count, 3);
}

TEST_F(DrawnDrafts, OfASmallVocabularyToo) {
  run(4096, 150, 0, false);
  EXPECT_LE(undecided_, 2);
  EXPECT_LE(undecided_drafts_, 2);
  for (const int count : accepted_) EXPECT_GE(count, 30);
}

TEST_F(DrawnDrafts, WithTiesToo) {
  run(4096, 60, 0.5F, false);
  EXPECT_LE(undecided_, windows_ / 6);
  EXPECT_LE(undecided_drafts_, drafts_ / 8);
}

TEST_F(DrawnDrafts, ARowThatIsNoRowIsLeftToTheHost) {
  run(4096, 30, 0, true);
  EXPECT_GE(undecided_drafts_, 30);
  EXPECT_GE(undecided_, 8);
  EXPECT_LE(undecided_, 2 * 30 + 2);
}

// q is all of token 7; p is half of 7 and half of 9.
TEST_F(DrawnDrafts, ADecisionOnTheEdgeIsLeftToTheHost) {
  make_sampler(4096);
  std::vector<float> logits(static_cast<size_t>(2 * vocab_), -kInf);
  logits[7] = 3;
  logits[static_cast<size_t>(vocab_) + 7] = logits[static_cast<size_t>(vocab_) + 9] = 2;
  SampleRow drawn;
  drawn.greedy = false;
  drawn.uniform = 0.5;
  drawn.keep_weights = 5;
  EXPECT_EQ(sample(logits, {drawn})->token, 7);
  const auto judge = [&](double acceptance, double uniform) {
    SampleRow row;
    row.row = 1;
    row.greedy = false;
    row.draft = 7;
    row.draft_weights = 5;
    row.acceptance = acceptance;
    row.uniform = uniform;
    return *sample(logits, {row});
  };
  const double step = 0x1p-24;
  const SampledRow below = judge(0.5 - step, 0.5);
  EXPECT_EQ(below.outcome, SampledRow::kToken);
  EXPECT_EQ(below.token, 7);
  EXPECT_EQ(below.accepted, 1);
  EXPECT_EQ(judge(0.5, 0.5).outcome, SampledRow::kUndecided);
  const SampledRow above = judge(0.5 + step, 0.5);
  EXPECT_EQ(above.outcome, SampledRow::kToken);
  EXPECT_EQ(above.token, 9);
  EXPECT_EQ(above.accepted, 0);
  // The first difference may have one before it that is 0 here and not on the host.
  EXPECT_EQ(judge(0.9, 0).outcome, SampledRow::kUndecided);
}

}  // namespace
}  // namespace nibble
