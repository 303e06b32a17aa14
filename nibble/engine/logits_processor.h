// A sequence's own rules on its logits, before sampling: bias, masks, penalties.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/engine/token_counts.h"
#include "nibble/grammar/token_mask.h"
#include "nibble/kernels/device_sampler.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

// The token sequences that spell one of `texts`: as the tokenizer writes the text at the beginning
// of a line and behind a space. A model can still spell a text in unusual pieces.
// Source of the two forms: vLLM's bad_words. Errors: kInvalidArgument for a text that isn't UTF-8.
Result<std::vector<std::vector<int32_t>>> bad_sequences(const Tokenizer& tokenizer,
                                                        std::span<const std::string> texts);

// What a LogitsProcessor needs to know of the model.
struct LogitsFacts {
  int64_t vocab_size = 0;                   // of the logits
  std::vector<int32_t> eos_ids = {};        // masked until min_tokens
  std::vector<int32_t> forbidden_ids = {};  // masked always, such as the tool token
  std::vector<std::vector<int32_t>> bad_sequences = {};
};

// The rules of one position as a DeviceSampler takes them: what SampleRow points to.
struct RowRules {
  std::vector<int32_t> forbidden;
  std::vector<TokenSeen> seen;
  std::vector<uint64_t> allowed;
};

// Steps 2 and 3 of spec serving section 1.3. Immutable.
class LogitsProcessor {
 public:
  // Errors: kInvalidArgument for an id outside the vocabulary.
  static Result<LogitsProcessor> create(const SamplingParams& params, LogitsFacts facts);

  // Counts for a sequence of these params, that cost only what they need.
  TokenCounts make_counts(std::span<const int32_t> prompt) const {
    return TokenCounts(prompt, penalises_);
  }

  // Whether apply() without a grammar mask changes nothing, at any position: a caller can then
  // leave it out (sample() looks for bad logits itself).
  bool is_identity() const;

  // Changes `logits` [vocab_size] in place: adds logit_bias; sets what the grammar,
  // `forbidden_ids`, `bad` or min_tokens forbid to -inf; applies the penalties.
  //
  //   counts           of the prompt and all output before this position, drafts included
  //   output_position  tokens of output before this one
  //   grammar_mask     of vocab_size, or null
  //
  // Errors: kCorrupt "no token allowed" when none is left, and for NaN and +inf in `logits`, which
  // may be half changed then.
  Status apply(std::span<float> logits, const TokenCounts& counts, int64_t output_position,
               const TokenMask* grammar_mask) const;

  // The same rules for a device: fills `rules` and what points to it in `row`. This processor has
  // to outlive the row, too.
  void describe(const TokenCounts& counts, int64_t output_position, const TokenMask* grammar_mask,
                RowRules* rules, SampleRow* row) const;

 private:
  LogitsProcessor(const SamplingParams& params, LogitsFacts facts);

  std::vector<int32_t> forbidden(const TokenCounts& counts, int64_t output_position) const;
  void penalise(std::span<float> logits, const TokenCounts& counts) const;

  LogitsFacts facts_;
  std::vector<TokenBias> bias_;          // -inf: banned
  std::vector<int32_t> min_tokens_ids_;  // masked until min_tokens
  int64_t min_tokens_ = 0;
  float repetition_penalty_ = 1;
  float presence_penalty_ = 0;
  float frequency_penalty_ = 0;
  bool penalises_ = false;
};

// Sets what `mask` forbids to -inf. The mask is of logits.size() tokens.
void apply_mask(std::span<float> logits, const TokenMask& mask);

// Leaves `id` as the only token with a finite logit, for a token that is imposed (thinking_budget).
// 0 <= id < logits.size().
void force_token(std::span<float> logits, int32_t id);

}  // namespace nibble
