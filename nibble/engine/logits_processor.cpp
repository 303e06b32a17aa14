#include "nibble/engine/logits_processor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/engine/sampler.h"

namespace nibble {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr double kBanningBias = -100;

float& logit_of(std::span<float> logits, int32_t id) { return logits[static_cast<size_t>(id)]; }

}  // namespace

// Word by word, because a mask forbids or allows most words whole.
void apply_mask(std::span<float> logits, const TokenMask& mask) {
  for (size_t w = 0; w < mask.words().size(); ++w) {
    const uint64_t word = mask.words()[w];
    if (word == ~uint64_t{0}) continue;
    const size_t end = std::min(logits.size(), 64 * w + 64);
    for (size_t i = 64 * w; i < end; ++i) {
      if ((word >> (i % 64) & 1) == 0) logits[i] = kForbidden;
    }
  }
}

Result<std::vector<std::vector<int32_t>>> bad_sequences(const Tokenizer& tokenizer,
                                                        std::span<const std::string> texts) {
  std::vector<std::vector<int32_t>> sequences;
  for (const std::string& text : texts) {
    for (const std::string& form : {text, " " + text}) {
      auto ids =
          NIBBLE_TRY(with_context(tokenizer.encode(form, {.parse_added_tokens = false}), "bad"));
      // Behind a space of its own a text may be cut in another way; the space itself is not bad.
      const bool has_own_space =
          form.size() > text.size() && ids.size() > 1 && tokenizer.token_bytes(ids.front()) == " ";
      if (has_own_space) ids.erase(ids.begin());
      const bool is_known = std::find(sequences.begin(), sequences.end(), ids) != sequences.end();
      if (ids.empty() || is_known) continue;
      sequences.push_back(std::move(ids));
    }
  }
  return sequences;
}

Result<LogitsProcessor> LogitsProcessor::create(const SamplingParams& params, LogitsFacts facts) {
  NIBBLE_TRY(validate_token_ids(params, facts.vocab_size));
  const auto known = [&](int32_t id) { return id >= 0 && id < facts.vocab_size; };
  for (const auto& sequence : facts.bad_sequences) {
    if (!std::all_of(sequence.begin(), sequence.end(), known)) {
      return invalid_argument(fmt::format(
          "a text of bad has a token outside the model's vocabulary of {}", facts.vocab_size));
    }
  }
  for (const std::vector<int32_t>* ids : {&facts.eos_ids, &facts.forbidden_ids}) {
    NIBBLE_CHECK(std::all_of(ids->begin(), ids->end(), known));
  }
  return LogitsProcessor(params, std::move(facts));
}

LogitsProcessor::LogitsProcessor(const SamplingParams& params, LogitsFacts facts)
    : facts_(std::move(facts)),
      min_tokens_(params.min_tokens),
      repetition_penalty_(static_cast<float>(params.repetition_penalty)),
      presence_penalty_(static_cast<float>(params.presence_penalty)),
      frequency_penalty_(static_cast<float>(params.frequency_penalty)) {
  for (const auto& [id, bias] : params.logit_bias) {
    bias_.push_back(
        {static_cast<int32_t>(id), bias <= kBanningBias ? kForbidden : static_cast<float>(bias)});
  }
  if (min_tokens_ > 0) {
    if (!params.ignore_eos) min_tokens_ids_ = facts_.eos_ids;
    for (const int64_t id : params.stop_token_ids) {
      min_tokens_ids_.push_back(static_cast<int32_t>(id));
    }
  }
  penalises_ = repetition_penalty_ != 1 || presence_penalty_ != 0 || frequency_penalty_ != 0;
}

bool LogitsProcessor::is_identity() const {
  return bias_.empty() && facts_.forbidden_ids.empty() && facts_.bad_sequences.empty() &&
         min_tokens_ids_.empty() && !penalises_;
}

Status LogitsProcessor::apply(std::span<float> logits, const TokenCounts& counts,
                              int64_t output_position, const TokenMask* grammar_mask) const {
  NIBBLE_CHECK(static_cast<int64_t>(logits.size()) == facts_.vocab_size);
  NIBBLE_TRY(check_logits(logits));
  for (const auto& [id, bias] : bias_) logit_of(logits, id) += bias;
  if (grammar_mask != nullptr) {
    NIBBLE_CHECK(grammar_mask->vocab_size() == facts_.vocab_size);
    apply_mask(logits, *grammar_mask);
  }
  for (const int32_t id : forbidden(counts, output_position)) logit_of(logits, id) = kForbidden;
  const bool is_any_left =
      std::any_of(logits.begin(), logits.end(), [](float logit) { return logit > kForbidden; });
  if (!is_any_left) return corrupt("no token allowed");
  if (penalises_) penalise(logits, counts);
  return {};
}

std::vector<int32_t> LogitsProcessor::forbidden(const TokenCounts& counts,
                                                int64_t output_position) const {
  std::vector<int32_t> ids = facts_.forbidden_ids;
  const std::vector<int32_t>& output = counts.output();
  for (const std::vector<int32_t>& bad : facts_.bad_sequences) {
    const size_t before = bad.size() - 1;
    if (before <= output.size() &&
        std::equal(bad.begin(), bad.end() - 1, output.end() - static_cast<ptrdiff_t>(before))) {
      ids.push_back(bad.back());
    }
  }
  if (output_position < min_tokens_) {
    ids.insert(ids.end(), min_tokens_ids_.begin(), min_tokens_ids_.end());
  }
  return ids;
}

void LogitsProcessor::describe(const TokenCounts& counts, int64_t output_position,
                               const TokenMask* grammar_mask, RowRules* rules,
                               SampleRow* row) const {
  row->bias = bias_;
  if (grammar_mask != nullptr) {
    rules->allowed = grammar_mask->words();  // the mask changes with the next position
    row->allowed = rules->allowed;
  }
  rules->forbidden = forbidden(counts, output_position);
  row->forbidden = rules->forbidden;
  if (!penalises_) return;
  for (const auto& [id, count] : counts.counts()) {
    if (id >= 0 && id < facts_.vocab_size) rules->seen.push_back({id, count.output});
  }
  row->seen = rules->seen;
  row->repetition_penalty = repetition_penalty_;
  row->presence_penalty = presence_penalty_;
  row->frequency_penalty = frequency_penalty_;
}

void LogitsProcessor::penalise(std::span<float> logits, const TokenCounts& counts) const {
  for (const auto& [id, count] : counts.counts()) {
    if (id < 0 || id >= facts_.vocab_size) continue;
    float& logit = logit_of(logits, id);
    logit = logit > 0 ? logit / repetition_penalty_ : logit * repetition_penalty_;
    logit -= frequency_penalty_ * static_cast<float>(count.output) +
             (count.output > 0 ? presence_penalty_ : 0);
  }
}

void force_token(std::span<float> logits, int32_t id) {
  NIBBLE_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size());
  std::fill(logits.begin(), logits.end(), kForbidden);
  logit_of(logits, id) = 0;
}

}  // namespace nibble
