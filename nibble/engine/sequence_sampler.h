// Logits of a window of one sequence to its next tokens and their text.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/finish_reason.h"
#include "nibble/engine/logits_processor.h"
#include "nibble/engine/logprobs.h"
#include "nibble/engine/output_constraint.h"
#include "nibble/engine/sampler.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/engine/stop_matcher.h"
#include "nibble/engine/token_counts.h"
#include "nibble/engine/verify.h"
#include "nibble/engine/weight_rows.h"
#include "nibble/kernels/device_sampler.h"
#include "nibble/kernels/matrix_view.h"
#include "nibble/tokenizer/detokenizer.h"

namespace nibble {

// How drafts are judged inside <think>...</think>; spec serving section 6.3. Lossy.
struct RelaxedThinking {
  bool enabled = false;
  int64_t topk = 1;  // >= 1
  double delta = 0;  // 0..1
};

// What the model and the engine give to every sequence.
struct SamplingContext {
  const Tokenizer* tokenizer = nullptr;
  int64_t vocab_size = 0;
  std::span<const int64_t> eos_token_ids;
  RelaxedThinking relaxed;
  bool processed_logprobs = false;  // logprobs_mode: after masks, penalties and filters
  GuidedCache* grammars = nullptr;  // needed with params.guided
  std::optional<double> forced_acceptance_length;  // EngineOptions
};

// Under which rule drafts are judged, for counts by it.
struct DraftRule {
  bool thinking = false;  // the window began inside <think>
  bool relaxed = false;
};

// Drafts of a window. Drawn drafts come with what each was drawn from: a distribution, or the row
// of a DeviceSampler's kept weights.
struct Drafts {
  std::vector<int32_t> token_ids;
  std::vector<Distribution> distributions;  // empty: token_ids are argmaxes; one: it has a row
  std::vector<WeightRow> rows;              // as many; null: it has a distribution

  int64_t size() const { return static_cast<int64_t>(token_ids.size()); }
  bool are_drawn() const { return !distributions.empty(); }
  void add(int32_t token, Distribution distribution, WeightRow row) {
    token_ids.push_back(token);
    distributions.push_back(std::move(distribution));
    rows.push_back(std::move(row));
  }
  void clear() {
    token_ids.clear();
    distributions.clear();
    rows.clear();
  }
};

// Rows for a DeviceSampler, with what they point to.
struct SampleRows {
  std::vector<SampleRow> rows;
  std::deque<RowRules> rules;  // never moved

  void clear() {
    rows.clear();
    rules.clear();
  }
};

// One for each sequence; kept with it through preemption.
class SequenceSampler {
 public:
  // Errors: those of LogitsProcessor::create, bad_sequences and OutputConstraint::create.
  static Result<SequenceSampler> create(const SamplingContext& context,
                                        const SamplingParams& params, int choice,
                                        std::span<const int32_t> prompt, int64_t max_output);

  struct Window {
    std::vector<int32_t> token_ids;          // 1 .. drafts + 1, the ending token last
    std::vector<PositionLogprobs> logprobs;  // of those, with params.logprobs
    std::string text;                        // that may be shown now
    std::optional<FinishReason> ended;
    std::string stop_text;     // the stop string that ended it
    int64_t num_accepted = 0;  // drafts among token_ids
    bool is_cut = false;       // it ended before all that was judged to stand: counts for nothing
    DraftRule rule;            // how the drafts were judged
  };

  // Judges `drafts` and draws one more token. Row i of `logits` [drafts + 1, vocab_size] stands
  // behind i drafts; rows are changed. Without drafts this is plain sampling, and with them the
  // tokens are the same but under relaxed acceptance, and with drawn drafts their law is. Errors:
  // kCorrupt for logits that allow no token.
  Result<Window> sample(const Drafts& drafts, const MatrixView& logits, Sampler& sampler);

  // The same with a DeviceSampler. prepare() appends the rows that it needs, the first of the
  // window being `first_row` of the logits, and returns their number: 0 when the host has to sample
  // (log-probabilities of processed logits are wanted, or the host drew one of the drafts).
  // finish() judges what came back; none when a row is undecided: then sample() has to be called
  // with the logits.
  int64_t prepare(const Drafts& drafts, int64_t first_row, SampleRows& rows);
  std::optional<Window> finish(const Drafts& drafts, std::span<const SampledRow> sampled);

  // propose() with a DeviceSampler: whether there can be a draft; it appends a row then. One that
  // is drawn (draws_drafts()) keeps its weights in row `weights`; null: it is not drawn.
  bool prepare_proposal(const Drafts& drafts, int64_t row, const WeightRow& weights,
                        SampleRows& rows);
  bool draws_drafts(bool draw) const { return draw && !is_greedy(params_); }
  // Whether prepare() gives every window to the host: log-probabilities of processed logits.
  bool judged_on_host() const { return params_.logprobs && context_.processed_logprobs; }

  // Turns kept weights [vocab_size] of a draft of this sequence into what sample() needs.
  Distribution draft_distribution(std::span<const float> weights) const {
    return distribution_of_weights(weights, params_);
  }

  // Appends a draft from the MTP layer's `logits` [vocab_size], which are changed: the likeliest
  // token that the grammar allows behind the drafts so far; with `draw`, when this sequence is not
  // greedy, one drawn as its tokens are. Without one that can be had nothing is appended. Returns
  // whether one was.
  bool propose(std::span<float> logits, bool draw, Sampler& sampler, Drafts& drafts);

 private:
  SequenceSampler(const SamplingContext& context, const SamplingParams& params, int choice,
                  std::span<const int32_t> prompt, int64_t max_output, LogitsProcessor processor,
                  OutputConstraint constraint);

  Status process(std::span<float> logits);
  RelaxedThinking relaxed() const;
  std::optional<RelaxedThinking> relaxed_now(const Drafts& drafts) const;
  std::optional<int64_t> num_forced(const Drafts& drafts) const;
  bool judges_drawn(const Drafts& drafts) const;
  void describe_draw(int64_t position, RandomStream stream, SampleRow& row) const;
  // When the window has all tokens that it will have.
  static void close(const Verification& verified, Window& window);
  Result<Verification> verify(const Drafts& drafts, const ProcessedRow& row,
                              Sampler& sampler) const;
  std::optional<FinishReason> ended_by(int32_t token) const;
  void push(int32_t token, Window& window);
  Result<PositionLogprobs> position_logprobs(std::span<const float> logits, int32_t token,
                                             Sampler& sampler) const;

  SamplingContext context_;
  SamplingParams params_;
  int choice_ = 0;
  int64_t max_output_ = 0;
  LogitsProcessor processor_;
  TokenCounts counts_;
  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  OutputConstraint constraint_;
};

}  // namespace nibble
