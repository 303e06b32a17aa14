// A DeviceSampler beside the host's sampler, over the same logits.
#pragma once

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

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr int64_t kVocab = 129280;  // R1's

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

  static inline Tokenizer* tokenizer_ = nullptr;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<DeviceSampler> sampler_;
  std::vector<int32_t> prompt_ = {0, 17, 99, 1000, 1000};
  std::vector<int64_t> eos_ = {1};
  int windows_ = 0;
  int undecided_ = 0;
};

// Like a model's: a few large ones over a broad rest. `step` > 0 rounds them, which makes ties.
inline std::vector<float> random_logits(std::mt19937& rng, int64_t rows, float spread,
                                        float step = 0) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(rows * kVocab));
  for (float& x : logits) {
    x = normal(rng);
    if (step > 0) x = std::round(x / step) * step;
  }
  return logits;
}

}  // namespace nibble
