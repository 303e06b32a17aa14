#include "nibble/engine/sequence_sampler.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/check.h"

namespace nibble {

Result<SequenceSampler> SequenceSampler::create(const SamplingContext& context,
                                                const SamplingParams& params, int choice,
                                                std::span<const int32_t> prompt,
                                                int64_t max_output) {
  LogitsFacts facts;
  facts.vocab_size = context.vocab_size;
  facts.eos_ids.assign(context.eos_token_ids.begin(), context.eos_token_ids.end());
  facts.bad_sequences = NIBBLE_TRY(bad_sequences(*context.tokenizer, params.bad));
  LogitsProcessor processor = NIBBLE_TRY(LogitsProcessor::create(params, std::move(facts)));
  OutputConstraint constraint =
      NIBBLE_TRY(OutputConstraint::create(*context.tokenizer, params, prompt, context.grammars));
  return SequenceSampler(context, params, choice, prompt, max_output, std::move(processor),
                         std::move(constraint));
}

SequenceSampler::SequenceSampler(const SamplingContext& context, const SamplingParams& params,
                                 int choice, std::span<const int32_t> prompt, int64_t max_output,
                                 LogitsProcessor processor, OutputConstraint constraint)
    : context_(context),
      params_(params),
      choice_(choice),
      max_output_(max_output),
      processor_(std::move(processor)),
      counts_(processor_.make_counts(prompt)),
      detokenizer_(*context.tokenizer, params.skip_special_tokens),
      stop_matcher_(params.stop, params.include_stop_str_in_output),
      constraint_(std::move(constraint)) {}

RelaxedThinking SequenceSampler::relaxed() const {
  if (!params_.relaxed_acceptance) return context_.relaxed;
  return {params_.relaxed_acceptance->enabled, params_.relaxed_acceptance->topk,
          params_.relaxed_acceptance->delta};
}

// The rule for drafts at this place, when it is relaxed acceptance.
std::optional<RelaxedThinking> SequenceSampler::relaxed_now(const Drafts& drafts) const {
  const RelaxedThinking rule = relaxed();
  if (!rule.enabled || !constraint_.thinking() || drafts.size() == 0) return std::nullopt;
  return rule;
}

// How many drafts stand whatever the model says, for benchmarks: window n, of n from 0, ends behind
// 1 + (n + 1) L tokens, rounded down, for an acceptance length of L.
std::optional<int64_t> SequenceSampler::num_forced(const Drafts& drafts) const {
  if (!context_.forced_acceptance_length || drafts.size() == 0) return std::nullopt;
  const double length = *context_.forced_acceptance_length;
  const auto position = static_cast<int64_t>(counts_.output().size());
  const double windows = std::round(static_cast<double>(position - 1) / length);
  const auto end = static_cast<int64_t>(std::floor(1 + (windows + 1) * length));
  return std::clamp<int64_t>(end - position - 1, 0,
                             std::min(drafts.size(), static_cast<int64_t>(std::ceil(length)) - 1));
}

// Whether drafts are judged by rejection sampling.
bool SequenceSampler::judges_drawn(const Drafts& drafts) const {
  return drafts.are_drawn() && !num_forced(drafts) && !relaxed_now(drafts);
}

Result<Verification> SequenceSampler::verify(const Drafts& drafts, const ProcessedRow& row,
                                             Sampler& sampler) const {
  const VerifyContext context{params_, static_cast<int64_t>(counts_.output().size()), choice_};
  if (const auto forced = num_forced(drafts)) {  // what passes when everything does
    return verify_relaxed(std::span(drafts.token_ids).first(static_cast<size_t>(*forced)), row,
                          context_.vocab_size, 1, context, sampler);
  }
  if (const auto relaxed = relaxed_now(drafts)) {
    return verify_relaxed(drafts.token_ids, row, relaxed->topk, relaxed->delta, context, sampler);
  }
  if (judges_drawn(drafts)) {
    return verify_drawn(drafts.token_ids, drafts.distributions, row, context, sampler);
  }
  return verify_strict(drafts.token_ids, row, context, sampler);
}

Result<PositionLogprobs> SequenceSampler::position_logprobs(std::span<const float> logits,
                                                            int32_t token, Sampler& sampler) const {
  if (context_.processed_logprobs && !is_greedy(params_)) {
    const Distribution distribution = NIBBLE_TRY(sampler.distribution(logits, params_));
    return logprobs(distribution, token, *params_.logprobs);
  }
  return logprobs(logits, token, *params_.logprobs);
}

std::optional<FinishReason> SequenceSampler::ended_by(int32_t token) const {
  const auto listed = [&](const auto& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  if (listed(params_.stop_token_ids)) return FinishReason::kStop;
  if (!params_.ignore_eos && listed(context_.eos_token_ids)) return FinishReason::kStop;
  if (static_cast<int64_t>(counts_.output().size()) >= max_output_) return FinishReason::kLength;
  return std::nullopt;
}

// A token that stands: counted, its text behind the stop strings, and whether it ends the sequence.
void SequenceSampler::push(int32_t token, Window& window) {
  counts_.push(token);
  NIBBLE_CHECK(constraint_.push(token));
  window.token_ids.push_back(token);
  const bool matching = static_cast<int64_t>(counts_.output().size()) > params_.min_tokens;
  window.ended = ended_by(token);
  const bool is_stop_token = window.ended == FinishReason::kStop;
  // A stop token's own text is not part of the answer; a special one has none anyway.
  StopMatcher::Output out =
      stop_matcher_.push(is_stop_token ? std::string() : detokenizer_.push(token), matching);
  window.text += out.text;
  if (out.match) {
    window.ended = FinishReason::kStop;
    window.stop_text = params_.stop[*out.match];
    return;
  }
  if (!window.ended) return;
  out = stop_matcher_.push(detokenizer_.flush(), matching);
  window.text += out.text;
  if (!out.match) window.text += stop_matcher_.flush();
}

// Steps 2 and 3 of spec serving section 1.3, for the position behind what was pushed.
Status SequenceSampler::process(std::span<float> logits) {
  const OutputConstraint::Rule rule = constraint_.next();
  if (rule.forced) {
    NIBBLE_TRY(check_logits(logits));
    force_token(logits, *rule.forced);
    return {};
  }
  if (processor_.is_identity() && rule.mask == nullptr) return {};
  const auto position = static_cast<int64_t>(counts_.output().size());
  return processor_.apply(logits, counts_, position, rule.mask);
}

Result<SequenceSampler::Window> SequenceSampler::sample(const Drafts& drafts,
                                                        const MatrixView& logits,
                                                        Sampler& sampler) {
  // Raw log-probabilities are of the logits as the model gave them, so those are kept.
  std::vector<std::vector<float>> raw;
  const bool want_raw = params_.logprobs && !context_.processed_logprobs;
  size_t pushed = 0;
  const auto processed = [&](int64_t row) -> Result<std::span<const float>> {
    const std::span<float> values(logits.row<float>(row), static_cast<size_t>(logits.cols));
    if (want_raw) raw.emplace_back(values.begin(), values.end());
    if (row > 0) {
      const int32_t draft = drafts.token_ids[static_cast<size_t>(row) - 1];
      counts_.push(draft);
      NIBBLE_CHECK(constraint_.push(draft));  // it was accepted, so the mask has it
      ++pushed;
    }
    NIBBLE_TRY(process(values));
    return std::span<const float>(values);
  };
  const DraftRule rule{constraint_.thinking(), relaxed().enabled && constraint_.thinking()};
  const auto verified = verify(drafts, processed, sampler);
  counts_.pop(pushed);
  constraint_.pop(pushed);
  if (!verified) return tl::unexpected(verified.error());

  Window window;
  window.rule = rule;
  for (size_t i = 0; i < verified->token_ids.size(); ++i) {
    const int32_t token = verified->token_ids[i];
    if (params_.logprobs) {
      const std::span<const float> row =
          want_raw ? std::span<const float>(raw[i])
                   : std::span<const float>(logits.row<float>(static_cast<int64_t>(i)),
                                            static_cast<size_t>(logits.cols));
      window.logprobs.push_back(NIBBLE_TRY(position_logprobs(row, token, sampler)));
    }
    push(token, window);
    if (window.ended) break;
  }
  close(*verified, window);
  return window;
}

void SequenceSampler::close(const Verification& verified, Window& window) {
  window.num_accepted = std::min(verified.accepted, static_cast<int64_t>(window.token_ids.size()));
  window.is_cut = window.token_ids.size() < verified.token_ids.size();
}

bool SequenceSampler::propose(std::span<float> logits, bool draw, Sampler& sampler,
                              Drafts& drafts) {
  size_t pushed = 0;
  bool allowed = true;
  if (constraint_.restricts()) {
    while (pushed < drafts.token_ids.size() && constraint_.push(drafts.token_ids[pushed])) ++pushed;
    allowed = pushed == drafts.token_ids.size();
    const OutputConstraint::Rule rule = constraint_.next();
    if (rule.forced) {
      force_token(logits, *rule.forced);
    } else if (rule.mask != nullptr) {
      apply_mask(logits, *rule.mask);
    }
    constraint_.pop(pushed);
  }
  if (!allowed) return false;
  if (!draw || is_greedy(params_)) {
    const auto token = argmax(logits);
    if (!token) return false;
    drafts.token_ids.push_back(*token);
    return true;
  }
  auto distribution = sampler.distribution(logits, params_);
  if (!distribution) return false;
  const auto position = static_cast<int64_t>(counts_.output().size()) + drafts.size();
  const double number = uniform(params_, position, RandomStream::kDraft, choice_);
  const int32_t token = nibble::draw(*distribution, number);
  drafts.add(token, *std::move(distribution), nullptr);
  return true;
}

}  // namespace nibble
