// What a block of sample.cu does together over a row of the vocabulary: sums, the largest values,
// the tokens that top_k and top_p keep, and a draw.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/sample.h"

namespace nibble::cuda {

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

__device__ inline bool is_better(const Best& a, const Best& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

__device__ inline double block_sum(double value, Shared& s) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = s.sums[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();
  return value;
}

__device__ inline Best block_best(Best best, Shared& s) {
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
__device__ inline float exp_not_positive(float x) {
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

__device__ inline float weight_of(float logit, float peak, float temperature) {
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
__device__ inline int find_bin(int count, unsigned long long target, Shared& s) {
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
__device__ inline int32_t find_tie(const float* weights, int32_t vocab, const Kept& kept,
                                   uint32_t bits, int64_t number, Shared& s) {
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
__device__ inline bool select(const float* weights, int32_t vocab, const DeviceSampleRow& p,
                              double total, double margin, Shared& s, Kept* kept) {
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
__device__ inline int accepts(const float* x, int32_t vocab, const DeviceSampleRow& p,
                              const Best& best, double margin, Shared& s) {
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

}  // namespace nibble::cuda
