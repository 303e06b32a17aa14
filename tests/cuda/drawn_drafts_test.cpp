// Drafts that a DeviceSampler draws and judges, against the host's.
#include "tests/cuda/device_sampling.h"

namespace nibble {
namespace {

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
