// A grammar for a reply that may think first: which tokens are content, and so the grammar's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nibble/grammar/grammar_matcher.h"

namespace nibble {

// Spec serving sections 4.3 and 4.5. The grammar is armed when content begins. Not thread-safe.
//
//   kStart      nothing yet: <think>, or content at once
//   kReasoning  between <think> and </think>: anything, without a mask
//   kAfter      behind </think>: at most two tokens of newlines only, or content
//   kContent    the grammar
class StructuredOutput {
 public:
  enum class Phase : uint8_t { kStart, kReasoning, kAfter, kContent };

  // Ids of <think> and </think>; -1: the model has none.
  struct Tags {
    int32_t begin = -1;
    int32_t end = -1;
  };

  // `start` is the phase behind the prompt.
  StructuredOutput(std::shared_ptr<CompiledGrammar> grammar, Phase start, Tags tags);

  // Takes the next token, a draft perhaps; false, and nothing changes, when it isn't allowed:
  // exactly when fill_mask() gives a mask without its bit.
  bool accept(int32_t token_id);

  // Takes back the last `count` accepted tokens, with the phases they began.
  void rollback(int64_t count);

  // False: any token may follow, *mask is as it was. True: those in *mask, of the model's
  // vocab_size.
  bool fill_mask(TokenMask* mask);

  // Whether the content is of the language: the reply may end here.
  bool is_complete();

  Phase phase() const { return steps_.back().phase; }
  int64_t num_tokens() const { return static_cast<int64_t>(steps_.size()) - 1; }

 private:
  struct Step {
    Phase phase = Phase::kStart;
    uint8_t newline_tokens = 0;  // behind </think>
    bool is_content = false;     // the matcher took the token that led here
  };
  bool may_be_newline(const Step& step) const;

  GrammarMatcher matcher_;
  std::shared_ptr<CompiledGrammar> grammar_;
  Tags tags_;
  std::vector<Step> steps_;  // before the first token, and behind each
};

}  // namespace nibble
