// The demo checkpoint on the GPU against tests/golden/demo: what Hugging Face transformers computed
// from it in FP32.
#include "tests/model/demo.h"

#include <gtest/gtest.h>

#include <iostream>

#include "nibble/engine/engine.h"
#include "nibble/engine/generate.h"
#include "tests/model/greedy_texts.h"

namespace nibble {
namespace {

using testing::Rows;

using testing::kPromptsWithLogits;

TEST(DemoOnCuda, LogitsAreWithinOnePercent) {
  auto model = testing::load_model(testing::demo_checkpoint(), "cuda");
  const auto oracle = *SafetensorsSource::open(testing::golden("demo/reference.safetensors"));
  const auto prompts = testing::reference_prompts();
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    double worst = 0;
    double worst_mtp = 0;
    for (int i = 0; i < kPromptsWithLogits; ++i) {
      Session session = testing::make_session(*model, dtype, true);
      Rows logits;
      const Status status =
          session.append(prompts[static_cast<size_t>(i)].ids, MlaForm::kExpanded,
                         [&](int64_t, const MatrixView& rows) { logits.append(rows); });
      ASSERT_TRUE(status.has_value()) << status.error().message;
      const auto expected = [&](const std::string& what) {
        const auto view = oracle->read("prompt" + std::to_string(i) + "." + what).value();
        return std::span(view.data<float>(), static_cast<size_t>(view.shape.num_elements()));
      };
      worst = std::max(worst, testing::relative_error(logits.values, expected("logits")));
      Rows mtp;
      ASSERT_TRUE(session.mtp_logits([&](int64_t, const MatrixView& rows) { mtp.append(rows); }));
      worst_mtp = std::max(worst_mtp, testing::relative_error(mtp.values, expected("mtp_logits")));
    }
    std::cout << dtype_name(dtype) << " cache: largest relative error of logits " << worst
              << ", of MTP logits " << worst_mtp << "\n";
    EXPECT_LE(worst, 1e-2);
    EXPECT_LE(worst_mtp, 1e-2);
  }
}

TEST(DemoOnCuda, GeneratesTheSevenGreedyContinuations) {
  auto model = testing::load_model(testing::demo_checkpoint(), "cuda");
  testing::expect_greedy_texts(*model);
}

// All prompts at once, with drafts and without, through the engine: the same tokens.
TEST(DemoOnCuda, TheEngineGivesTheSameTokensInBatchesAndWithDrafts) {
  auto model = testing::load_model(testing::demo_checkpoint(), "cuda");
  const auto prompts = testing::reference_prompts();
  for (const int64_t drafts : {0, 1, 3}) {
    EngineOptions options;
    options.max_batch_size = 4;
    options.max_num_tokens = 64;
    options.num_blocks = 256;
    options.num_drafts = drafts;
    auto engine = Engine::create(*model, options);
    ASSERT_TRUE(engine.has_value()) << engine.error().message;
    std::vector<uint64_t> ids;
    for (int i = 0; i < kPromptsWithLogits; ++i) {
      Request request;
      request.prompt_token_ids = prompts[static_cast<size_t>(i)].ids;
      request.params.temperature = 0;
      request.params.max_tokens = 60;
      ids.push_back((*engine)->add(std::move(request)).value());
    }
    std::vector<std::vector<int32_t>> tokens(ids.size());
    while ((*engine)->has_work()) {
      for (const RequestUpdate& update : (*engine)->step()) {
        ASSERT_FALSE(update.error.has_value()) << update.error->message;
        for (size_t i = 0; i < ids.size(); ++i) {
          if (ids[i] != update.id) continue;
          tokens[i].insert(tokens[i].end(), update.token_ids.begin(), update.token_ids.end());
        }
      }
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      std::vector<int32_t> want = prompts[i].greedy;
      want.resize(std::min<size_t>(want.size(), 60));
      EXPECT_EQ(tokens[i], want) << prompts[i].text << ", drafts " << drafts;
    }
  }
}

}  // namespace
}  // namespace nibble
