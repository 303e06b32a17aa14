// What may come next in one sequence beyond its masks and penalties: the grammar of its content and
// the end of its thinking.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/grammar/compile_guided.h"
#include "nibble/grammar/structured_output.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

// Follows a sequence token by token, drafts included, which are taken back when they are refused.
// Not thread-safe.
class OutputConstraint {
 public:
  // `grammars` is used with params.guided alone. Errors: those of GuidedCache::compile;
  // kInvalidArgument for a thinking_budget without <think> and </think> in the tokenizer.
  static Result<OutputConstraint> create(const Tokenizer& tokenizer, const SamplingParams& params,
                                         std::span<const int32_t> prompt, GuidedCache* grammars);

  // The rule for the next token: `forced`, or one of *mask (null: any). Valid until the next call.
  struct Rule {
    const TokenMask* mask = nullptr;
    std::optional<int32_t> forced;
  };
  Rule next();

  // Takes the next token; false, and nothing changes, when the grammar forbids it.
  bool push(int32_t token);

  // Takes back the last `count` tokens; no more than were pushed.
  void pop(size_t count);

  // Between <think> and </think>: the last of the two in prompt and output is <think>.
  bool thinking() const { return steps_.back().thinking; }

  // Whether any token is restricted ever; otherwise next() has nothing to say.
  bool restricts() const { return structured_ || thinking_budget_; }

 private:
  struct Step {
    bool thinking = false;
    int64_t num_reasoning = 0;  // tokens of output since <think>
  };

  OutputConstraint() = default;
  Step after(Step step, int32_t token) const;

  std::optional<int32_t> think_begin_;
  std::optional<int32_t> think_end_;
  std::optional<int64_t> thinking_budget_;
  std::optional<StructuredOutput> structured_;
  std::vector<Step> steps_;  // behind the prompt, and behind each token
  TokenMask mask_;
};

}  // namespace nibble
