#include "nibble/grammar/structured_output.h"

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble {
namespace {

constexpr uint8_t kMaxNewlineTokens = 2;

}  // namespace

StructuredOutput::StructuredOutput(std::shared_ptr<CompiledGrammar> grammar, Phase start, Tags tags)
    : matcher_(grammar), grammar_(std::move(grammar)), tags_(tags), steps_({{start, 0, false}}) {}

bool StructuredOutput::may_be_newline(const Step& step) const {
  return step.phase == Phase::kAfter && step.newline_tokens < kMaxNewlineTokens;
}

bool StructuredOutput::accept(int32_t token_id) {
  Step step = steps_.back();
  step.is_content = false;
  const auto newlines = grammar_->trie().newline_ids();
  if (step.phase == Phase::kReasoning) {
    if (token_id == tags_.end) step.phase = Phase::kAfter;
  } else if (step.phase == Phase::kStart && token_id == tags_.begin && token_id >= 0) {
    step.phase = Phase::kReasoning;
  } else if (may_be_newline(step) &&
             std::find(newlines.begin(), newlines.end(), token_id) != newlines.end()) {
    ++step.newline_tokens;
  } else {
    if (!matcher_.accept(token_id)) return false;
    step.phase = Phase::kContent;
    step.is_content = true;
  }
  steps_.push_back(step);
  return true;
}

void StructuredOutput::rollback(int64_t count) {
  NIBBLE_CHECK(count >= 0 && count <= num_tokens());
  int64_t content = 0;
  for (; count > 0; --count) {
    content += steps_.back().is_content ? 1 : 0;
    steps_.pop_back();
  }
  matcher_.rollback(content);
}

bool StructuredOutput::fill_mask(TokenMask* mask) {
  const Step& step = steps_.back();
  if (step.phase == Phase::kReasoning) return false;
  matcher_.fill_mask(mask);
  if (step.phase == Phase::kStart && tags_.begin >= 0) mask->allow(tags_.begin);
  if (may_be_newline(step)) {
    for (const int32_t id : grammar_->trie().newline_ids()) mask->allow(id);
  }
  return true;
}

bool StructuredOutput::is_complete() {
  return steps_.back().phase != Phase::kReasoning && matcher_.is_complete();
}

}  // namespace nibble
