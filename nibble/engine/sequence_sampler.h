// Logits of a window of one sequence to its next tokens and their text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/finish_reason.h"
#include "nibble/engine/logits_processor.h"
#include "nibble/engine/logprobs.h"
#include "nibble/engine/sampler.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/engine/stop_matcher.h"
#include "nibble/engine/token_counts.h"
#include "nibble/engine/verify.h"
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
};

// One for each sequence; kept with it through preemption.
class SequenceSampler {
 public:
  // Errors: those of LogitsProcessor::create and bad_sequences.
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
  };

  // Judges `drafts` and draws one more token. Row i of `logits` [drafts + 1, vocab_size] stands
  // behind i drafts; rows are changed. Without drafts this is plain sampling, and with them the
  // tokens are the same but under relaxed acceptance. Errors: kCorrupt for logits that allow no
  // token.
  Result<Window> sample(std::span<const int32_t> drafts, const MatrixView& logits,
                        Sampler& sampler);

 private:
  SequenceSampler(const SamplingContext& context, const SamplingParams& params, int choice,
                  std::span<const int32_t> prompt, int64_t max_output, LogitsProcessor processor);

  Result<Verification> verify(std::span<const int32_t> drafts, const ProcessedRow& row,
                              Sampler& sampler) const;
  std::optional<FinishReason> ended_by(int32_t token) const;
  void push(int32_t token, Window& window);
  Result<PositionLogprobs> position_logprobs(std::span<const float> logits, int32_t token,
                                             Sampler& sampler) const;
  void follow_phase(int32_t token);

  SamplingContext context_;
  SamplingParams params_;
  int choice_ = 0;
  int64_t max_output_ = 0;
  LogitsProcessor processor_;
  TokenCounts counts_;
  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  std::optional<int32_t> think_begin_;
  std::optional<int32_t> think_end_;
  bool thinking_ = false;
};

}  // namespace nibble
