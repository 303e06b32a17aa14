// The demo's seven greedy texts, one sequence at a time.
#pragma once

#include <gtest/gtest.h>

#include "nibble/engine/generate.h"
#include "tests/model/demo.h"

namespace nibble::testing {

constexpr int kPromptsWithLogits = 7;

// Each of the reference prompts is continued as tests/golden/demo/reference.json has it.
inline void expect_greedy_texts(LoadedModel& model) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 200;
  const auto prompts = reference_prompts();
  for (int i = 0; i < kPromptsWithLogits; ++i) {
    const auto& prompt = prompts[static_cast<size_t>(i)];
    Session session = make_session(model, DType::kBf16);
    const auto result = generate(session, model, prompt.ids, params, [](int32_t) { return true; });
    ASSERT_TRUE(result.has_value()) << result.error().message;
    EXPECT_EQ(result->token_ids, prompt.greedy) << prompt.text;
    EXPECT_EQ(model.tokenizer.decode(result->token_ids, false), prompt.greedy_text);
  }
}

}  // namespace nibble::testing
