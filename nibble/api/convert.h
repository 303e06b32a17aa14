// Between the public types of include/nibble and the engine's own.
#pragma once

#include <string>

#include "nibble/base/result.h"
#include "nibble/checkpoint/generation_config.h"
#include "nibble/engine/answer_group.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/output.h"
#include "nibble/result.h"
#include "nibble/sampling_params.h"

namespace nibble {

api::Error to_api(const Error& error);

// The value, or the error in its public form: return api::... from a Result.
template <typename T>
api::Result<T> to_api(Result<T> result) {
  if (!result) return to_api(result.error());
  return *std::move(result);
}

// What a request takes where it is silent.
struct SamplingDefaults {
  GenerationConfig generation;  // empty with sampling_defaults "openai"
  std::optional<int64_t> max_tokens;
};

// Not yet validated. `seed` is for params without one. Errors: kInvalidArgument for contradictory
// guided decoding.
Result<SamplingParams> to_engine(const api::SamplingParams& params,
                                 const SamplingDefaults& defaults, int64_t seed);

api::PositionLogprobs to_api(const PositionLogprobs& position);

// The last token when it is one of stop_token_ids and no stop string ended the answer.
std::optional<int32_t> stop_token_of(const Answer& answer, const SamplingParams& params);

}  // namespace nibble
