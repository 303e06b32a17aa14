// Prompt -> tokens, for one sequence.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/finish_reason.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/engine/session.h"

namespace nibble {

struct GenerateResult {
  std::vector<int32_t> token_ids;  // with the stop token, where one ended it
  FinishReason finish_reason = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of all tokens but the first
};

// Called with each token as soon as it is known; false ends generation (kAbort).
using TokenSink = std::function<bool(int32_t token_id)>;

// Appends `prompt` to the session, then samples until an end-of-sequence or stop token, max_tokens
// or the end of the context. An interrupt ends it with kAbort and what there is.
// Errors: those of validate(params), Session::append and sample(); kInvalidArgument for a prompt
// that leaves no room for a single token.
Result<GenerateResult> generate(Session& session, const LoadedModel& model,
                                std::span<const int32_t> prompt, const SamplingParams& params,
                                const TokenSink& sink);

}  // namespace nibble
