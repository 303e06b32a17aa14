// How the next token is chosen and when generation ends.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// Ranges are those of the API; spec serving section 1.2.
struct SamplingParams {
  std::optional<int64_t> max_tokens = std::nullopt;  // >= 1; none: the rest of the context
  double temperature = 1;                            // 0..2; below 1e-5 means greedy
  double top_p = 1;                                  // (0, 1]
  int64_t top_k = 0;                                 // 0 and -1: off
  double min_p = 0;                                  // 0..1: drop tokens with p < min_p * max p
  std::optional<int64_t> seed = std::nullopt;        // none: 0
  std::vector<int64_t> stop_token_ids = {};
  bool ignore_eos = false;
};

// Errors: kInvalidArgument naming the field, its value and its range.
Status validate(const SamplingParams& params);

}  // namespace nibble
