#include "nibble/engine/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/engine/sampler.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool ends(const LoadedModel& model, const SamplingParams& params, int32_t token) {
  if (!params.ignore_eos && model.is_eos(token)) return true;
  return std::find(params.stop_token_ids.begin(), params.stop_token_ids.end(), token) !=
         params.stop_token_ids.end();
}

}  // namespace

Result<GenerateResult> generate(Session& session, const LoadedModel& model,
                                std::span<const int32_t> prompt, const SamplingParams& params,
                                const TokenSink& sink) {
  NIBBLE_TRY(validate(params));
  const auto before = static_cast<int64_t>(session.token_ids().size());
  const int64_t room = session.max_tokens() - before - static_cast<int64_t>(prompt.size());
  if (room < 1) {
    return invalid_argument(fmt::format(
        "the prompt has {} tokens{}, and the context is {} tokens, of which one must stay free",
        prompt.size(), before > 0 ? fmt::format(" behind {} earlier ones", before) : "",
        session.max_tokens()));
  }
  const int64_t limit = std::min(params.max_tokens.value_or(room), room);

  GenerateResult result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  const Clock::time_point start = Clock::now();
  NIBBLE_TRY(session.append(prompt, MlaForm::kExpanded));
  Clock::time_point first_token = start;
  for (;;) {
    const auto position = static_cast<int64_t>(result.token_ids.size());
    const int32_t token = NIBBLE_TRY(sample(session.last_logits(), params, position));
    if (position == 0) {
      result.prefill_seconds = seconds_since(start);
      first_token = Clock::now();
    }
    result.token_ids.push_back(token);
    const bool ended = ends(model, params, token);
    const bool wanted = sink(token);
    if (ended || !wanted || interrupted() || position + 1 >= limit) {
      result.finish_reason = ended                   ? FinishReason::kStop
                             : position + 1 >= limit ? FinishReason::kLength
                                                     : FinishReason::kAbort;
      break;
    }
    const Status appended = session.append(std::span(&token, 1), MlaForm::kAbsorbed);
    if (!appended && appended.error().code == ErrorCode::kCancelled) {
      result.finish_reason = FinishReason::kAbort;
      break;
    }
    NIBBLE_TRY(Status(appended));
  }
  result.decode_seconds = seconds_since(first_token);
  return result;
}

}  // namespace nibble
