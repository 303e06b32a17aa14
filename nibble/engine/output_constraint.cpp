#include "nibble/engine/output_constraint.h"

#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

using Phase = StructuredOutput::Phase;

bool is_one_of(int32_t id, std::span<const int32_t> ids) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// The prompt's last token that isn't a newline, or -1.
int32_t last_of_substance(std::span<const int32_t> prompt, std::span<const int32_t> newline_ids) {
  while (!prompt.empty() && is_one_of(prompt.back(), newline_ids)) {
    prompt = prompt.first(prompt.size() - 1);
  }
  return prompt.empty() ? -1 : prompt.back();
}

}  // namespace

Result<OutputConstraint> OutputConstraint::create(const Tokenizer& tokenizer,
                                                  const SamplingParams& params,
                                                  std::span<const int32_t> prompt,
                                                  GuidedCache* grammars) {
  OutputConstraint constraint;
  constraint.think_begin_ = tokenizer.token_id("<think>");
  constraint.think_end_ = tokenizer.token_id("</think>");
  constraint.thinking_budget_ = params.thinking_budget;
  if (params.thinking_budget && !(constraint.think_begin_ && constraint.think_end_)) {
    return invalid_argument(
        "thinking_budget needs a model with the tokens <think> and </think>, which this tokenizer "
        "lacks; leave thinking_budget out");
  }
  Step step;
  for (const int32_t token : prompt) {
    step = constraint.after(step, token);
    step.num_reasoning = 0;
  }
  constraint.steps_.push_back(step);
  if (!params.guided) return constraint;

  NIBBLE_CHECK(grammars != nullptr);
  auto grammar = NIBBLE_TRY(with_context(grammars->compile(*params.guided), "guided"));
  const TokenTrie& trie = grammar->trie();
  constraint.mask_ = TokenMask(trie.vocab_size());
  Phase start = Phase::kStart;
  if (step.thinking) {
    start = Phase::kReasoning;
  } else if (constraint.think_end_ &&
             last_of_substance(prompt, trie.newline_ids()) == *constraint.think_end_) {
    start = Phase::kContent;
  }
  const StructuredOutput::Tags tags{constraint.think_begin_.value_or(-1),
                                    constraint.think_end_.value_or(-1)};
  constraint.structured_.emplace(std::move(grammar), start, tags);
  return constraint;
}

OutputConstraint::Step OutputConstraint::after(Step step, int32_t token) const {
  if (token == think_begin_) return {true, 0};
  if (token == think_end_) return {false, 0};
  if (step.thinking) ++step.num_reasoning;
  return step;
}

OutputConstraint::Rule OutputConstraint::next() {
  const Step& step = steps_.back();
  Rule rule;
  if (thinking_budget_ && step.thinking && step.num_reasoning >= *thinking_budget_) {
    rule.forced = think_end_;
  } else if (structured_ && structured_->fill_mask(&mask_)) {
    rule.mask = &mask_;
  }
  return rule;
}

bool OutputConstraint::push(int32_t token) {
  if (structured_ && !structured_->accept(token)) return false;
  steps_.push_back(after(steps_.back(), token));
  return true;
}

void OutputConstraint::pop(size_t count) {
  NIBBLE_CHECK(count < steps_.size());
  steps_.resize(steps_.size() - count);
  if (structured_) structured_->rollback(static_cast<int64_t>(count));
}

}  // namespace nibble
