// Rows of logits to tokens, one block of threads a row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/device_sampler.h"

namespace nibble::cuda {

// SampleRow with its spans as places in the arrays of SampleArgs.
struct DeviceSampleRow {
  int64_t row = 0;
  int64_t mask = -1;  // first word of `masks`, or -1
  int32_t first_bias = 0, num_bias = 0;
  int32_t first_forbidden = 0, num_forbidden = 0;
  int32_t first_seen = 0, num_seen = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t forced = -1;
  int32_t plain = 1;  // no rule changes a logit
  int32_t greedy = 1;
  float temperature = 1;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0, uniform = 0;
  int32_t keep_weights = -1;
  int32_t draft = -1;
  int64_t relaxed_topk = 1;
  double relaxed_delta = 0;
  int32_t draft_weights = -1;
  double acceptance = 0;
  int32_t logprobs = -1;
};

struct SampleArgs {
  const float* logits = nullptr;  // [any, vocab]
  int64_t stride = 0;
  int32_t vocab = 0;
  float* work = nullptr;  // [rows, vocab]; null when no row needs it: plain and greedy, or kept
  float* kept = nullptr;  // [any, vocab], weights of drawn drafts
  double* kept_totals = nullptr;  // [any], their sums
  const DeviceSampleRow* rows = nullptr;
  const TokenBias* bias = nullptr;
  const int32_t* forbidden = nullptr;
  const TokenSeen* seen = nullptr;
  const uint64_t* masks = nullptr;
  SampledRow* results = nullptr;
};

cudaError_t launch_sample(const SampleArgs& args, int64_t rows, cudaStream_t stream);

}  // namespace nibble::cuda
