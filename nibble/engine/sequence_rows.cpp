// SequenceSampler's half of sampling on a device: its rules as rows, and its judgement of tokens.
#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/engine/sequence_sampler.h"

namespace nibble {

void SequenceSampler::describe_draw(int64_t position, RandomStream stream, SampleRow& row) const {
  row.greedy = is_greedy(params_);
  row.temperature = static_cast<float>(params_.temperature);
  row.top_k = std::max<int64_t>(params_.top_k, 0);
  row.top_p = params_.top_p;
  row.min_p = params_.min_p;
  row.uniform = uniform(params_, position, stream, choice_);
}

int64_t SequenceSampler::prepare(const Drafts& drafts, int64_t first_row, SampleRows& rows) {
  const bool drawn = judges_drawn(drafts);
  const auto is_here = [](const WeightRow& row) { return row == nullptr; };
  if (drawn && std::any_of(drafts.rows.begin(), drafts.rows.end(), is_here)) return 0;
  // Log-probabilities of processed logits, and of drafts that stand whatever the logits say, are
  // the host's.
  if (judged_on_host() || (params_.logprobs && num_forced(drafts))) return 0;
  const auto relaxed = relaxed_now(drafts);
  const auto position = static_cast<int64_t>(counts_.output().size());
  size_t pushed = 0;
  int64_t count = 0;
  for (int64_t i = 0; i <= drafts.size(); ++i) {
    if (i > 0) {
      const int32_t draft = drafts.token_ids[static_cast<size_t>(i) - 1];
      // A draft that the grammar forbids is refused by the row before: nothing stands behind it.
      if (!constraint_.push(draft)) break;
      counts_.push(draft);
      ++pushed;
    }
    SampleRow& row = rows.rows.emplace_back();
    ++count;
    row.row = first_row + i;
    const OutputConstraint::Rule rule = constraint_.next();
    if (rule.forced) {
      row.forced = *rule.forced;
    } else if (!processor_.is_identity() || rule.mask != nullptr) {
      processor_.describe(counts_, position + i, rule.mask, &rows.rules.emplace_back(), &row);
    }
    describe_draw(position + i, RandomStream::kDraw, row);
    static_assert(kMaxLogprobs <= kMaxSampledTop);
    if (params_.logprobs) row.logprobs = static_cast<int32_t>(*params_.logprobs);
    if (relaxed && i < drafts.size()) {
      row.draft = drafts.token_ids[static_cast<size_t>(i)];
      row.relaxed_topk = relaxed->topk;
      row.relaxed_delta = relaxed->delta;
    }
    if (drawn && i < drafts.size()) {
      row.draft = drafts.token_ids[static_cast<size_t>(i)];
      row.draft_weights = static_cast<int32_t>(*drafts.rows[static_cast<size_t>(i)]);
      row.acceptance = uniform(params_, position + i, RandomStream::kAcceptance, choice_);
      row.uniform = uniform(params_, position + i, RandomStream::kResidual, choice_);
    }
  }
  counts_.pop(pushed);
  constraint_.pop(pushed);
  return count;
}

std::optional<SequenceSampler::Window> SequenceSampler::finish(
    const Drafts& drafts, std::span<const SampledRow> sampled) {
  // Under these rules the row itself says whether its draft stands.
  const bool judged = relaxed_now(drafts).has_value() || judges_drawn(drafts);
  const std::optional<int64_t> forced = num_forced(drafts);
  Verification verified;
  for (size_t i = 0;; ++i) {
    if (i >= sampled.size() || sampled[i].outcome != SampledRow::kToken) return std::nullopt;
    const bool has_draft = i < drafts.token_ids.size();
    const int32_t draft = has_draft ? drafts.token_ids[i] : -1;
    const bool is_forced = forced && static_cast<int64_t>(i) < *forced;
    const bool passes = has_draft && (is_forced || (!forced && judged && sampled[i].accepted != 0));
    verified.token_ids.push_back(passes ? draft : sampled[i].token);
    // As in verify.cpp: these draw only where they refuse.
    const bool goes_on = judged || forced ? passes : has_draft && sampled[i].token == draft;
    if (!goes_on) break;
    ++verified.accepted;
  }
  Window window;
  for (size_t i = 0; i < verified.token_ids.size(); ++i) {
    const int32_t token = verified.token_ids[i];
    if (params_.logprobs) window.logprobs.push_back(logprobs(sampled[i].logprobs, token));
    push(token, window);
    if (window.ended) break;
  }
  close(verified, window);
  return window;
}

bool SequenceSampler::prepare_proposal(const Drafts& drafts, int64_t row, const WeightRow& weights,
                                       SampleRows& rows) {
  size_t pushed = 0;
  bool allowed = true;
  SampleRow asked;
  asked.row = row;
  if (constraint_.restricts()) {
    while (pushed < drafts.token_ids.size() && constraint_.push(drafts.token_ids[pushed])) ++pushed;
    allowed = pushed == drafts.token_ids.size();
    const OutputConstraint::Rule rule = constraint_.next();
    if (rule.forced) {
      asked.forced = *rule.forced;
    } else if (rule.mask != nullptr) {
      rows.rules.emplace_back().allowed = rule.mask->words();
      asked.allowed = rows.rules.back().allowed;
    }
    constraint_.pop(pushed);
  }
  if (!allowed) return false;
  if (weights != nullptr) {
    const auto position = static_cast<int64_t>(counts_.output().size()) + drafts.size();
    describe_draw(position, RandomStream::kDraft, asked);
    asked.keep_weights = static_cast<int32_t>(*weights);
  }
  rows.rows.push_back(asked);
  return true;
}

}  // namespace nibble
