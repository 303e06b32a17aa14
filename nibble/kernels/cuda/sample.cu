// Sampling as the engine's LogitsProcessor and Sampler define it. Each logit and weight has the
// same bits as theirs: every operation rounds by itself, in their order. Sums are taken in another
// order, in binary64; a decision that lies closer to such a sum than both orders can differ is left
// to the host (SampledRow::kUndecided). So a token is the host's token, or none.
//
// The parts of a log-probability are exact, but for the sum of exponentials, which is taken in
// another order, too.
//
// Bound by the passes over a row, 4 bytes a token of the vocabulary each, by one SM: two or three
// for a greedy token, about ten with top_p, nine more for log-probabilities, five more of two rows
// for a drawn draft that is refused.
#include "nibble/kernels/cuda/sample.h"
#include "nibble/kernels/cuda/sample_block.cuh"

namespace nibble::cuda {
namespace {

// The row behind bias, masks and penalties, in `work`. Whether all of it is a number below +inf.
__device__ bool apply_rules(const float* raw, float* work, const SampleArgs& a,
                            const DeviceSampleRow& p) {
  bool bad = false;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
    float x = raw[i];
    bad |= !(x < INFINITY);
    if (p.mask >= 0 && (a.masks[p.mask + i / 64] >> (i % 64) & 1) == 0) x = -INFINITY;
    work[i] = x;
  }
  if (__syncthreads_or(bad)) return false;
  for (int i = static_cast<int>(threadIdx.x); i < p.num_bias; i += kThreads) {
    const TokenBias entry = a.bias[p.first_bias + i];
    work[entry.id] = __fadd_rn(work[entry.id], entry.bias);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.num_forbidden; i += kThreads) {
    work[a.forbidden[p.first_forbidden + i]] = -INFINITY;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.num_seen; i += kThreads) {
    const TokenSeen entry = a.seen[p.first_seen + i];
    float x = work[entry.id];
    x = x > 0 ? __fdiv_rn(x, p.repetition_penalty) : __fmul_rn(x, p.repetition_penalty);
    work[entry.id] =
        __fsub_rn(x, __fadd_rn(__fmul_rn(p.frequency_penalty, static_cast<float>(entry.in_output)),
                               entry.in_output > 0 ? p.presence_penalty : 0.0f));
  }
  __syncthreads();
  return true;
}

// The first fields of a SampledRow.
struct Choice {
  SampledRow::Outcome outcome;
  int32_t token;
  int32_t accepted;
};

// Rejection sampling of p.draft, which was drawn from kept weights q; `weights` of which `kept` can
// be drawn are those of the target.
//
// A probability is a weight by its total, which the host's order puts off by `margin` / 2 of it at
// most. So the quotient of two is off by `margin`, and a sum of differences by 3 / 2 `margin`: an
// element's error is a half of margin * (p + q), which add up to `margin`, and the sum's own order
// adds a half. The doubt left here is above both.
__device__ Choice judge_drawn(const SampleArgs& a, const DeviceSampleRow& p, const float* weights,
                              const Kept& kept, double margin, Shared& s) {
  const Choice undecided = {SampledRow::kUndecided, 0, 0};
  const float* const q = a.kept + static_cast<int64_t>(p.draft_weights) * a.vocab;
  const double q_total = a.kept_totals[p.draft_weights];
  const auto weight_at = [&](int32_t i) {
    return kept.has(weights[i], i) ? static_cast<double>(weights[i]) : 0.0;
  };
  double total = 0;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
    total += weight_at(i);
  }
  total = block_sum(total, s);
  const double ratio = weight_at(p.draft) / total / (static_cast<double>(q[p.draft]) / q_total);
  if (p.acceptance < ratio * (1 - 2 * margin)) return {SampledRow::kToken, p.draft, 1};
  if (!(p.acceptance >= ratio * (1 + 2 * margin))) return undecided;
  const double scale = 1 / total;
  const double q_scale = 1 / q_total;
  const auto left = [&](int32_t i) {
    return fmax(0.0, weight_at(i) * scale - static_cast<double>(q[i]) * q_scale);
  };
  const int32_t token = draw(a.vocab, left, p.uniform, 0, 4 * margin, s).id;
  if (token < 0) return undecided;
  return {SampledRow::kToken, token, 0};
}

// Leaves in `weights`, a row of a.kept, what a draft was drawn from.
__device__ void keep_drawn(const SampleArgs& a, const DeviceSampleRow& p, float* weights,
                           const Kept& kept, double total) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
    if (!kept.has(weights[i], i)) weights[i] = 0;
  }
  if (threadIdx.x == 0) a.kept_totals[p.keep_weights] = total;
}

__device__ Choice sample_row(const SampleArgs& a, const DeviceSampleRow& p, Shared& s) {
  const Choice undecided = {SampledRow::kUndecided, 0, 0};
  const float* x = a.logits + p.row * a.stride;
  float* const work = p.keep_weights >= 0 ? a.kept + static_cast<int64_t>(p.keep_weights) * a.vocab
                                          : a.work + static_cast<int64_t>(blockIdx.x) * a.vocab;
  if (p.plain == 0) {
    if (!apply_rules(x, work, a, p)) return undecided;
    x = work;
  }
  Best best = {-INFINITY, a.vocab};
  bool bad = false;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
    const float value = x[i];
    bad |= !(value < INFINITY);
    if (is_better({value, i}, best)) best = {value, i};
  }
  if (__syncthreads_or(bad)) return undecided;
  if (p.forced >= 0) {
    if (p.keep_weights >= 0) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
        work[i] = i == p.forced ? 1.0f : 0.0f;
      }
      if (threadIdx.x == 0) a.kept_totals[p.keep_weights] = 1;
    }
    return {SampledRow::kToken, p.forced, p.forced == p.draft};
  }
  best = block_best(best, s);
  if (!(best.value > -INFINITY)) return undecided;

  // Twice what n sums in binary64 can be off, of their total.
  const double margin = static_cast<double>(a.vocab) * 0x1p-51;
  int accepted = 0;
  if (p.draft >= 0 && p.draft_weights < 0) {
    accepted = accepts(x, a.vocab, p, best, margin, s);
    if (accepted < 0) return undecided;
  }
  if (p.greedy != 0) return {SampledRow::kToken, best.id, accepted};

  double total = 0;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.vocab; i += kThreads) {
    float weight = weight_of(x[i], best.value, p.temperature);
    if (p.min_p > 0 && static_cast<double>(weight) < p.min_p) weight = 0;
    work[i] = weight;
    total += static_cast<double>(weight);
  }
  total = block_sum(total, s);
  Kept kept;
  if (!select(work, a.vocab, p, total, margin, s, &kept)) return undecided;
  if (p.draft_weights >= 0) return judge_drawn(a, p, work, kept, margin, s);
  const auto weight_at = [&](int32_t i) {
    return kept.has(work[i], i) ? static_cast<double>(work[i]) : 0.0;
  };
  const Drawn drawn = draw(a.vocab, weight_at, p.uniform, margin, 0, s);
  if (drawn.id < 0) return undecided;
  if (p.keep_weights >= 0) keep_drawn(a, p, work, kept, drawn.total);
  return {SampledRow::kToken, drawn.id, accepted};
}

// Bits that order as the logits do; 0 and -0 are one.
__device__ uint32_t logit_key(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The key at which the logits, counted from the largest down, reach `count`, of which there are as
// many above -inf; *ties is how many of that key belong to them.
__device__ uint32_t find_logit(const float* x, int32_t vocab, int count, Shared& s, int64_t* ties) {
  uint32_t prefix = 0;
  auto target = static_cast<unsigned long long>(count);
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kReplicas * kBins; i += kThreads) s.bins[i] = 0;
    __syncthreads();
    const uint32_t known = shift == 24 ? 0 : ~0u << (shift + 8);
    unsigned long long* const bins = s.bins + threadIdx.x % kReplicas * kBins;
#pragma unroll 4
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
      const uint32_t key = logit_key(x[i]);
      if ((key & known) == prefix) atomicAdd(bins + (key >> shift & 0xff), 1ull);
    }
    __syncthreads();
    const int bin = find_bin(kBins, target, s);
    target -= s.above;
    prefix |= static_cast<uint32_t>(bin) << shift;
    __syncthreads();
  }
  *ties = static_cast<int64_t>(target);
  return prefix;
}

// Of the logits `x` as the model gave them, none of which is NaN or +inf. False when none is above
// -inf.
__device__ bool report_logprobs(const float* x, int32_t vocab, int32_t token, int32_t wanted,
                                Shared& s, SampledLogprobs* out) {
  Best best = {-INFINITY, vocab};
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
    if (is_better({x[i], i}, best)) best = {x[i], i};
  }
  best = block_best(best, s);
  if (!(best.value > -INFINITY)) return false;
  const Best own = {x[token], token};
  double sum = 0;
  double ahead = 0;
  double possible = 0;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
    sum += exp(static_cast<double>(x[i]) - static_cast<double>(best.value));
    ahead += is_better({x[i], i}, own) ? 1 : 0;
    possible += x[i] > -INFINITY ? 1 : 0;
  }
  sum = block_sum(sum, s);
  ahead = block_sum(ahead, s);
  possible = block_sum(possible, s);
  const int count = min(wanted, static_cast<int>(possible));
  if (threadIdx.x == 0) {
    out->peak = best.value;
    out->chosen = own.value;
    out->sum = sum;
    out->rank = static_cast<int32_t>(ahead) + 1;
    out->count = count;
  }
  if (count == 0) return true;
  int64_t ties = 0;
  const uint32_t least = find_logit(x, vocab, count, s, &ties);
  const auto is_tie = [&](int32_t i) { return logit_key(x[i]) == least; };
  const int32_t last = find_nth(vocab, ties, is_tie, s);
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
    const uint32_t key = logit_key(x[i]);
    if (key > least || (key == least && i <= last)) s.top[atomicAdd(&s.found, 1)] = {x[i], i};
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    const Best mine = s.top[threadIdx.x];
    int place = 0;
    for (int i = 0; i < count; ++i) place += is_better(s.top[i], mine) ? 1 : 0;
    out->top[place] = {mine.id, mine.value};
  }
  return true;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs a) {
  __shared__ Shared s;
  if (threadIdx.x == 0) s.row = a.rows[blockIdx.x];
  __syncthreads();
  const Choice choice = sample_row(a, s.row, s);
  SampledRow* const result = a.results + blockIdx.x;
  if (threadIdx.x == 0) {
    result->outcome = choice.outcome;
    result->token = choice.token;
    result->accepted = choice.accepted;
  }
  if (choice.outcome != SampledRow::kToken || s.row.logprobs < 0) return;
  const bool reported = report_logprobs(a.logits + s.row.row * a.stride, a.vocab,
                                        choice.accepted != 0 ? s.row.draft : choice.token,
                                        s.row.logprobs, s, &result->logprobs);
  if (!reported && threadIdx.x == 0) result->outcome = SampledRow::kUndecided;
}

}  // namespace

cudaError_t launch_sample(const SampleArgs& args, int64_t rows, cudaStream_t stream) {
  sample_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace nibble::cuda
