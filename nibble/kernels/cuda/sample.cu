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

namespace nibble::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxTiles = 2048;
constexpr int kBins = 256;
constexpr int kReplicas = 4;                    // of a histogram: fewer lanes meet in one bin
constexpr double kMassUnit = 70368744177664.0;  // 2^46: 2^17 weights of 1 fit 64 bits

struct Best {
  float value;
  int32_t id;
};

struct Shared {
  DeviceSampleRow row;
  double sums[kWarps];
  Best bests[kWarps];
  unsigned long long bins[kReplicas * kBins];
  double tiles[kMaxTiles];
  uint32_t ballots[kWarps];
  // What one thread or warp found, for all.
  unsigned long long above;
  int64_t count;
  double before;
  double after;
  int32_t found;
  Best top[kMaxSampledTop];
};

__device__ bool is_better(const Best& a, const Best& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

__device__ double block_sum(double value, Shared& s) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = s.sums[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();
  return value;
}

__device__ Best block_best(Best best, Shared& s) {
  const auto reduce = [&] {
    for (int offset = 16; offset > 0; offset /= 2) {
      const Best other = {__shfl_xor_sync(~0u, best.value, offset),
                          __shfl_xor_sync(~0u, best.id, offset)};
      if (is_better(other, best)) best = other;
    }
  };
  reduce();
  if (threadIdx.x % 32 == 0) s.bests[threadIdx.x / 32] = best;
  __syncthreads();
  best = s.bests[threadIdx.x % 32];
  reduce();
  __syncthreads();
  return best;
}

// nibble/engine/softmax.cpp's exponential, bit for bit.
__device__ float exp_not_positive(float x) {
  constexpr float kRound = 12582912.0f;
  constexpr int kFloor = 0x42B00000;
  const int magnitude = __float_as_int(x) & 0x7FFFFFFF;
  const float clamped = -__int_as_float(magnitude < kFloor ? magnitude : kFloor);
  const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504088896341f), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r =
      __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float poly = 1.9875691500e-4f;
  poly = __fadd_rn(__fmul_rn(poly, r), 1.3981999507e-3f);
  poly = __fadd_rn(__fmul_rn(poly, r), 8.3334519073e-3f);
  poly = __fadd_rn(__fmul_rn(poly, r), 4.1665795894e-2f);
  poly = __fadd_rn(__fmul_rn(poly, r), 1.6666665459e-1f);
  poly = __fadd_rn(__fmul_rn(poly, r), 5.0000001201e-1f);
  const float value = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(poly, r), r), r), 1.0f);
  const uint32_t power = (__float_as_uint(shifted) + 127u) << 23;
  return __fmul_rn(value, __uint_as_float(power));
}

__device__ float weight_of(float logit, float peak, float temperature) {
  return exp_not_positive(__fdiv_rn(__fsub_rn(logit, peak), temperature));
}

// Which weights can be drawn: those above a threshold, and of those equal to it the first by id.
struct Kept {
  uint32_t threshold = 0;  // bits of a weight; they order as the weights do
  int32_t last_tie = -1;

  __device__ bool has(float weight, int32_t id) const {
    const uint32_t bits = __float_as_uint(weight);
    return bits > threshold || (bits == threshold && id <= last_tie);
  }
};

// Adds `values` of `count` bins from the last one down until `target` is reached: the bin, and what
// lies above it in s.above; -1 when it is not reached. By the first warp; all threads get it.
__device__ int find_bin(int count, unsigned long long target, Shared& s) {
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    const int each = (count + 31) / 32;
    const auto bin = [&](int place) {  // place 0: the last bin
      unsigned long long sum = 0;
      if (place < count) {
        for (int r = 0; r < kReplicas; ++r) sum += s.bins[r * kBins + count - 1 - place];
      }
      return sum;
    };
    unsigned long long own = 0;
    for (int i = 0; i < each; ++i) own += bin(lane * each + i);
    unsigned long long through = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const unsigned long long other = __shfl_up_sync(~0u, through, offset);
      if (lane >= offset) through += other;
    }
    const unsigned reached = __ballot_sync(~0u, through >= target);
    if (reached == 0) {
      if (lane == 0) s.found = -1;
    } else if (lane == __ffs(static_cast<int>(reached)) - 1) {
      unsigned long long above = through - own;
      int i = 0;
      for (; i < each; ++i) {
        const unsigned long long here = bin(lane * each + i);
        if (above + here >= target) break;
        above += here;
      }
      s.found = count - 1 - (lane * each + i);
      s.above = above;
    }
  }
  __syncthreads();
  const int found = s.found;
  __syncthreads();
  return found;
}

// The weight, by its bits, at which the weights that `kept` has, added from the largest down, reach
// `target`: in number, or in mass of 1 / kMassUnit. False when they don't. Leaves what is left of
// the target for weights of these bits in *rest.
template <bool kMass>
__device__ bool find_threshold(const float* weights, int32_t vocab, const Kept& kept,
                               unsigned long long target, Shared& s, uint32_t* threshold,
                               unsigned long long* rest) {
  constexpr int kShifts[] = {23, 15, 7, 0};
  constexpr int kWidths[] = {8, 8, 8, 7};  // the sign is 0
  uint32_t prefix = 0;
  uint32_t known = 0;
  for (int pass = 0; pass < 4; ++pass) {
    for (int i = static_cast<int>(threadIdx.x); i < kReplicas * kBins; i += kThreads) s.bins[i] = 0;
    __syncthreads();
    const int shift = kShifts[pass];
    const uint32_t mask = (1u << kWidths[pass]) - 1;
    unsigned long long* const bins = s.bins + threadIdx.x % kReplicas * kBins;
#pragma unroll 4
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
      const float weight = weights[i];
      const uint32_t bits = __float_as_uint(weight);
      if ((bits & known) != prefix || !kept.has(weight, i)) continue;
      const unsigned long long value =
          kMass ? static_cast<unsigned long long>(static_cast<double>(weight) * kMassUnit) : 1;
      if (value > 0) atomicAdd(bins + (bits >> shift & mask), value);
    }
    __syncthreads();
    const int bin = find_bin(1 << kWidths[pass], target, s);
    if (bin < 0) return false;
    target -= s.above;
    prefix |= static_cast<uint32_t>(bin) << shift;
    known |= mask << shift;
    __syncthreads();
  }
  *threshold = prefix;
  *rest = target;
  return true;
}

// The number-th id (from 1) for which is_one holds; `vocab` where there are fewer.
template <typename Predicate>
__device__ int32_t find_nth(int32_t vocab, int64_t number, const Predicate& is_one, Shared& s) {
  if (threadIdx.x == 0) s.found = vocab;
  int64_t seen = 0;
  for (int32_t base = 0; base < vocab; base += kThreads) {
    const int32_t i = base + static_cast<int32_t>(threadIdx.x);
    const bool one = i < vocab && is_one(i);
    const uint32_t ballot = __ballot_sync(~0u, one);
    if (threadIdx.x % 32 == 0) s.ballots[threadIdx.x / 32] = ballot;
    const int here = __syncthreads_count(one);
    if (seen + here >= number) {
      if (threadIdx.x == 0) {
        int64_t left = number - seen;
        int w = 0;
        while (left > __popc(s.ballots[w])) left -= __popc(s.ballots[w++]);
        uint32_t word = s.ballots[w];
        for (; left > 1; --left) word &= word - 1;
        s.found = base + 32 * w + __ffs(static_cast<int>(word)) - 1;
      }
      break;
    }
    seen += here;
    __syncthreads();
  }
  __syncthreads();
  const int32_t found = s.found;
  __syncthreads();
  return found;
}

// The id of the number-th (from 1) weight of these bits that `kept` has.
__device__ int32_t find_tie(const float* weights, int32_t vocab, const Kept& kept, uint32_t bits,
                            int64_t number, Shared& s) {
  const auto is_tie = [&](int32_t i) {
    return __float_as_uint(weights[i]) == bits && kept.has(weights[i], i);
  };
  return find_nth(vocab, number, is_tie, s);
}

// The first place of 0 .. count - 1 at which before + value(0) + .. + value(place) exceeds target,
// by the first warp; lanes take neighbouring places. s.found is -1 when there is none; s.before and
// s.after are the sums on both sides of it.
template <typename Value>
__device__ void find_place(int count, double before, double target, const Value& value, Shared& s) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int each = (count + 31) / 32;
  double own = 0;
  for (int i = lane * each; i < min(count, (lane + 1) * each); ++i) own += value(i);
  double through = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const double other = __shfl_up_sync(~0u, through, offset);
    if (lane >= offset) through += other;
  }
  // Added along the lanes once more, so that the walk below ends where this says.
  double start = before + __shfl_up_sync(~0u, through, 1);
  if (lane == 0) start = before;
  double end = start;
  for (int i = lane * each; i < min(count, (lane + 1) * each); ++i) end += value(i);
  const unsigned reached = __ballot_sync(~0u, end > target);
  if (reached == 0) {
    if (lane == 0) s.found = -1;
    return;
  }
  if (lane != __ffs(static_cast<int>(reached)) - 1) return;
  double sum = start;
  for (int i = lane * each;; ++i) {
    const double next = sum + value(i);
    if (next > target) {
      s.found = i;
      s.before = sum;
      s.after = next;
      return;
    }
    sum = next;
  }
}

// Which ids top_k and top_p leave. False: undecided.
__device__ bool select(const float* weights, int32_t vocab, const DeviceSampleRow& p, double total,
                       double margin, Shared& s, Kept* kept) {
  if (p.top_k > 0 && p.top_k < vocab) {
    uint32_t threshold = 0;
    unsigned long long ties = 0;
    if (find_threshold<false>(weights, vocab, *kept, static_cast<unsigned long long>(p.top_k), s,
                              &threshold, &ties)) {
      const int32_t last =
          find_tie(weights, vocab, *kept, threshold, static_cast<int64_t>(ties), s);
      *kept = {threshold, last};
      double sum = 0;
#pragma unroll 4
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
        if (kept->has(weights[i], i)) sum += static_cast<double>(weights[i]);
      }
      total = block_sum(sum, s);
    }
  }
  if (p.top_p >= 1) return true;
  const double target = p.top_p * total;
  uint32_t threshold = 0;
  unsigned long long rest = 0;
  if (!find_threshold<true>(weights, vocab, *kept,
                            static_cast<unsigned long long>(target * kMassUnit), s, &threshold,
                            &rest)) {
    return false;
  }
  double above = 0;
  double ties = 0;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
    const uint32_t bits = __float_as_uint(weights[i]);
    if (bits < threshold || !kept->has(weights[i], i)) continue;
    if (bits == threshold) {
      ties += 1;
    } else {
      above += static_cast<double>(weights[i]);
    }
  }
  above = block_sum(above, s);
  ties = block_sum(ties, s);
  const double weight = static_cast<double>(__uint_as_float(threshold));
  const double wanted = fmin(fmax(ceil((target - above) / weight), 1.0), ties);
  // The host adds until the sum reaches top_p: one fewer has to fall short, and these to reach it.
  margin *= total;
  if (!(above + (wanted - 1) * weight < target - margin)) return false;
  if (!(above + wanted * weight > target + margin)) return false;
  *kept = {threshold, find_tie(weights, vocab, *kept, threshold, static_cast<int64_t>(wanted), s)};
  return true;
}

struct Drawn {
  int32_t id;    // -1: undecided
  double total;  // of all values
};

// The first id in id order at which the sum of value(id) exceeds uniform * their total, each value
// at least 0. Sums may be off by a half of margin * total + absolute_margin.
template <typename Value>
__device__ Drawn draw(int32_t vocab, const Value& value, double uniform, double margin,
                      double absolute_margin, Shared& s) {
  const int32_t tile = 128 * ((vocab + 128 * kMaxTiles - 1) / (128 * kMaxTiles));
  const int tiles = (vocab + tile - 1) / tile;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto value_at = [&](int32_t i) { return i < vocab ? value(i) : 0.0; };
  double own = 0;
  for (int t = static_cast<int>(threadIdx.x / 32); t < tiles; t += kWarps) {
    double sum = 0;
    for (int32_t i = lane; i < tile; i += 32) sum += value_at(t * tile + i);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (lane == 0) {
      s.tiles[t] = sum;
      own += sum;
    }
  }
  const double total = block_sum(own, s);  // also a barrier behind s.tiles
  const double target = uniform * total;
  margin = margin * total + absolute_margin;
  find_place(
      tiles, 0, target, [&](int t) { return s.tiles[t]; }, s);
  __syncthreads();
  const int found = s.found;
  const double before = s.before;
  __syncthreads();
  if (found < 0) return {-1, total};
  find_place(
      tile, before, target, [&](int i) { return value_at(found * tile + i); }, s);
  __syncthreads();
  if (s.found < 0) return {-1, total};
  // The very first weight has nothing before it that could round; the first difference may have
  // one that the host doesn't find to be 0.
  const bool is_first = s.before == 0 && absolute_margin == 0;
  if (!(s.after - target > margin) || !(is_first || target - s.before > margin)) return {-1, total};
  return {found * tile + s.found, total};
}

// Relaxed acceptance of p.draft beside the likeliest: 1, 0, or -1 for undecided. `x` are the
// logits behind all rules.
__device__ int accepts(const float* x, int32_t vocab, const DeviceSampleRow& p, const Best& best,
                       double margin, Shared& s) {
  if (p.draft == best.id) return 1;
  const Best draft = {x[p.draft], p.draft};
  if (draft.value == -INFINITY) return 0;
  double ahead = 0;
  double sum = 0;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) {
    ahead += is_better({x[i], i}, draft) ? 1 : 0;
    sum += static_cast<double>(weight_of(x[i], best.value, 1));
  }
  ahead = block_sum(ahead, s);
  sum = block_sum(sum, s);
  if (ahead >= static_cast<double>(p.relaxed_topk)) return 0;
  const auto passes = [&](double total_sum) {
    const auto total = static_cast<float>(total_sum);
    const float top = __fdiv_rn(weight_of(best.value, best.value, 1), total);
    const float likelihood = __fdiv_rn(weight_of(draft.value, best.value, 1), total);
    return likelihood >= __fsub_rn(top, static_cast<float>(p.relaxed_delta));
  };
  const bool low = passes(sum * (1 - margin));
  return low == passes(sum * (1 + margin)) ? static_cast<int>(low) : -1;
}

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
