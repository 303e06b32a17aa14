// Logits of the demo on two GPUs against one GPU's and the reference's: prompts, and steps of
// decoding that are recorded.
#include <gtest/gtest.h>

#include <iostream>
#include <numeric>
#include <thread>

#include "nibble/engine/lane_passes.h"
#include "nibble/engine/local_passes.h"
#include "nibble/engine/rank_passes.h"
#include "tests/cuda/two_gpus.h"
#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

using testing::Prompt;
using testing::Rows;

constexpr int64_t kBlockSize = 32;
constexpr int64_t kPromptBlocks = 32;  // of each lane's sequence
constexpr int64_t kMostDecoded = 24;   // tokens after the prompt, one a pass

PassPlan pass_plan() {
  PassPlan plan;
  plan.cache = {DType::kBf16, kBlockSize, kPromptBlocks, false};
  plan.max_rows = 512;
  plan.max_generated = 8;
  plan.max_batch_size = 8;
  plan.options.graph_sizes = {1, 2};
  return plan;
}

// The logits of the prompt, and of the passes over the first greedy tokens.
struct SequenceLogits {
  Rows prompt;
  Rows decoded;
};

// Of `greedy`; the last one is never an input.
int64_t num_decoded(const Prompt& prompt) {
  return std::min<int64_t>(kMostDecoded, static_cast<int64_t>(prompt.greedy.size()) - 1);
}

SequenceLogits run(ModelPasses& passes, const Prompt& prompt) {
  std::vector<int32_t> table(kPromptBlocks);
  std::iota(table.begin(), table.end(), 0);
  const auto pass = [&](std::span<const int32_t> ids, int64_t first, MlaForm form, Rows* rows) {
    const auto count = static_cast<int64_t>(ids.size());
    const std::vector<AttentionSegment> segments = {{0, count, first, table.data(), form}};
    const Status status = passes.forward({ids, AttentionBatch{count, segments}});
    ASSERT_TRUE(status) << status.error().message;
    std::vector<RowRange> ranges;
    for (int64_t at = 0; at < count; at += ModelPasses::kLogitRows) {
      ranges.push_back({at, std::min(ModelPasses::kLogitRows, count - at)});
    }
    passes.logits(HiddenRow::From::kStep, ranges,
                  [&](size_t, const MatrixView& logits) { rows->append(logits); });
  };
  SequenceLogits logits;
  pass(prompt.ids, 0, MlaForm::kExpanded, &logits.prompt);
  for (int64_t i = 0; i < num_decoded(prompt); ++i) {
    pass(std::span(prompt.greedy).subspan(static_cast<size_t>(i), 1),
         static_cast<int64_t>(prompt.ids.size()) + i, MlaForm::kAbsorbed, &logits.decoded);
  }
  return logits;
}

std::vector<SequenceLogits> on_one_gpu(const std::vector<Prompt>& prompts) {
  const auto model = testing::load_model(testing::demo_checkpoint(), "cuda");
  const PassPlan plan = pass_plan();
  const auto passes = LocalPasses::create(*model, plan.cache, plan.max_rows, plan.options).value();
  std::vector<SequenceLogits> logits;
  logits.reserve(prompts.size());
  for (const Prompt& prompt : prompts) logits.push_back(run(*passes, prompt));
  EXPECT_GT(passes->num_replayed(), 0);
  return logits;
}

std::vector<SequenceLogits> on_two_gpus(const Shard& shard, const std::vector<Prompt>& prompts) {
  ModelOptions options;
  options.backend = "cuda";
  options.shard = shard;
  RankThreads ranks(testing::demo_checkpoint(), options);
  const auto model = LoadedModel::load(testing::demo_checkpoint(), ranks.model_options()).value();
  std::vector<SequenceLogits> logits(prompts.size());
  if (!shard.enable_attention_dp) {
    const auto passes = RankPasses::create(*model, pass_plan()).value();
    for (size_t i = 0; i < prompts.size(); ++i) logits[i] = run(*passes, prompts[i]);
    EXPECT_GT(passes->num_replayed(), 0);
    return logits;
  }
  // A prompt on each rank; of an odd number the last one leaves the other rank without work.
  const auto group = LaneGroup::create(*model, pass_plan()).value();
  const std::unique_ptr<ModelPasses> lanes[2] = {group->passes(0), group->passes(1)};
  for (size_t i = 0; i < prompts.size(); i += 2) {
    const size_t count = std::min<size_t>(2, prompts.size() - i);
    group->enter(static_cast<int>(count));
    std::vector<std::thread> threads;
    for (size_t lane = 0; lane < count; ++lane) {
      threads.emplace_back([&, lane, i] {
        logits[i + lane] = run(*lanes[lane], prompts[i + lane]);
        group->leave();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_GT(lanes[0]->num_replayed(), 0);
  return logits;
}

TEST_F(TwoGpus, LogitsAreThoseOfOneGpu) {
  std::vector<Prompt> prompts = testing::reference_prompts();
  prompts.resize(7);  // those with logits
  const auto oracle =
      SafetensorsSource::open(testing::golden("demo/reference.safetensors")).value();
  const std::vector<SequenceLogits> one = on_one_gpu(prompts);
  for (const Shard& shard : {Shard{0, 2, 1, false},
                             {0, 2, 2, false},
                             {0, 2, 2, true},
                             {0, 2, 2, true, All2AllBackend::kAlltoall}}) {
    const std::string name =
        "ep " + std::to_string(shard.ep_size) +
        (shard.enable_attention_dp ? ", attention data parallel" : "") +
        (shard.all2all_backend == All2AllBackend::kAlltoall ? ", alltoall" : "");
    SCOPED_TRACE(name);
    const std::vector<SequenceLogits> two = on_two_gpus(shard, prompts);
    double worst_prompt = 0;
    double worst_decoded = 0;
    double worst_reference = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto view = oracle->read("prompt" + std::to_string(i) + ".logits").value();
      const std::span<const float> reference(view.data<float>(),
                                             static_cast<size_t>(view.shape.num_elements()));
      const auto raise = [](double* most, double value) { *most = std::max(*most, value); };
      raise(&worst_reference, testing::relative_error(two[i].prompt.values, reference));
      raise(&worst_prompt, testing::relative_error(two[i].prompt.values, one[i].prompt.values));
      raise(&worst_decoded, testing::relative_error(two[i].decoded.values, one[i].decoded.values));
      ASSERT_EQ(two[i].decoded.count(), num_decoded(prompts[i]));
      for (int64_t r = 0; r < num_decoded(prompts[i]); ++r) {
        EXPECT_EQ(testing::argmax_of(two[i].decoded.row(r)),
                  prompts[i].greedy[static_cast<size_t>(r) + 1]);
      }
    }
    std::cout << name << ": largest relative error of logits, prompts " << worst_prompt
              << ", recorded steps " << worst_decoded << " (to one GPU's); prompts "
              << worst_reference << " (to the reference's)\n";
    EXPECT_LE(worst_prompt, 1e-2);
    EXPECT_LE(worst_decoded, 1e-2);
    EXPECT_LE(worst_reference, 1e-2);
  }
}

}  // namespace
}  // namespace nibble
