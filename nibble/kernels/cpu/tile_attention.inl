// tile_attention.h's loops, built for AMX and for plain loops as tile_isa.inl is.
//
// Tiles: results 0-3, two by two; 4 and 5 hold two tiles of keys, then of weights; 6 and 7 queries,
// then values. Queries and weights of 32 rows stay in L1 while keys and values pass from L2. Scores
// of 32 positions become weights while those of the next 32 are made, and never leave L1.

namespace nibble {
namespace {

constexpr int64_t kScoreFloats = 32 * 16;  // of a panel of rows, 32 positions

// What is asked for in passing.
struct EntriesAhead {
  const void* const* piece;
  int64_t left;
  int64_t bytes;
};

inline void ask_ahead(EntriesAhead* ahead, int pieces) {
  for (; pieces > 0 && ahead->left > 0; --pieces, ++ahead->piece, --ahead->left) {
    const auto* const data = static_cast<const uint8_t*>(*ahead->piece);
    for (int64_t i = 0; i < ahead->bytes; i += 64) __builtin_prefetch(data + i, 0, 2);
  }
}

// Scores of 32 positions, from tiles of keys `pair` * 2 on, and of kPanels panels of rows.
template <int kPanels>
void score_pass(const TileAttention& work, int64_t panel, int64_t pair, float* scores) {
  const auto* const first = static_cast<const uint8_t*>(work.keys[2 * pair]);
  const auto* const second = static_cast<const uint8_t*>(work.keys[2 * pair + 1]);
  const uint8_t* const queries = work.queries + panel * work.steps * kTileBytes;
  t_zero<0>();
  t_zero<2>();
  if constexpr (kPanels > 1) {
    t_zero<1>();
    t_zero<3>();
  }
  const auto tile = [&](int row, int64_t step) __attribute__((always_inline)) {
    return (row == 0 ? first : second) + step * work.key_step;
  };
  // The last steps are done result by result, so that results leave while the next are made.
  const int64_t last_steps = kPanels > 1 ? (work.steps < 3 ? work.steps : 3) : 0;
  for (int64_t step = 0; step < work.steps - last_steps; ++step) {
    t_load<6>(queries + step * kTileBytes, 64);
    if constexpr (kPanels > 1) t_load<7>(queries + (work.steps + step) * kTileBytes, 64);
    t_load<4>(tile(0, step), work.key_stride);
    t_dot<0, 4, 6>();
    if constexpr (kPanels > 1) t_dot<1, 4, 7>();
    t_load<5>(tile(1, step), work.key_stride);
    t_dot<2, 5, 6>();
    if constexpr (kPanels > 1) t_dot<3, 5, 7>();
  }
  const auto finish = [&]<int kTile>(float* out) __attribute__((always_inline)) {
    constexpr int kRow = kTile / 2;
    constexpr int kPanel = kTile % 2;
    for (int64_t step = work.steps - last_steps; step < work.steps; ++step) {
      t_load<4 + kRow>(tile(kRow, step), work.key_stride);
      t_load<6 + kPanel>(queries + (kPanel * work.steps + step) * kTileBytes, 64);
      t_dot<kTile, 4 + kRow, 6 + kPanel>();
    }
    t_store<kTile>(out, 64);
  };
  finish.template operator()<0>(scores);
  if constexpr (kPanels > 1) finish.template operator()<1>(scores + kScoreFloats);
  finish.template operator()<2>(scores + 256);
  if constexpr (kPanels > 1) finish.template operator()<3>(scores + kScoreFloats + 256);
}

// 2^x for x <= some 10, within 7.5e-5 of it: far less than the rounding to BF16 that follows.
// Numbers below -126 count as that; the polynomial is the one of degree 3 with the least relative
// error from -1/2 to 1/2.
inline TileLanes l_exp2(TileLanes x) {
  const TileLanes magic = l_set(0x1.8p23f);
  x = l_max(l_set(-126), x);
  const TileLanes places = l_add(x, magic);
  const TileLanes r = l_sub(x, l_sub(places, magic));
  TileLanes p = l_fma(l_set(0x1.c3f76p-5f), r, l_set(0x1.f0de1ap-3f));
  p = l_fma(p, r, l_set(0x1.62f31ap-1f));
  p = l_fma(p, r, l_set(0x1.fff692p-1f));
  return l_times_exp2(p, places);
}

// How many of the 32 positions of `pair` each row of a panel sees.
inline TileLimits pair_limits(const TileAttention& work, int64_t panel, int64_t pair) {
  int32_t limit[16];
  for (int i = 0; i < 16; ++i) {
    const int64_t seen = work.visible[panel * 16 + i] - work.start - 32 * pair;
    limit[i] = static_cast<int32_t>(seen < 32 ? seen : 32);
  }
  return l_limits(limit);
}

// The largest of a row's scores of 32 positions, scaled and rounded up. A NaN may get lost here;
// its own weight is NaN and the sum with it.
template <bool kMasked>
TileLanes largest_scores(const TileAttention& work, const float* scores, TileLimits limits) {
  const TileLanes lowest = l_set(-__builtin_inff());
  TileLanes largest[4] = {lowest, lowest, lowest, lowest};
  for (int i = 0; i < 32; i += 4) {
    NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
      TileLanes score = l_load(scores + (i + j) * 16);
      if constexpr (kMasked) score = l_keep(limits, i + j, score, lowest);
      largest[j] = l_max(largest[j], score);
    }
  }
  return l_ceil(l_mul(l_set(work.scale),
                      l_max(l_max(largest[0], largest[1]), l_max(largest[2], largest[3]))));
}

// Maxima of a panel's rows rise to `largest` where that is far above. `summed`: so that what was
// summed is scaled.
inline void raise_maxima(const TileAttention& work, int64_t panel, TileLanes largest, bool summed) {
  const TileLanes old_max = l_load(work.max + panel * 16);
  const TileLanes new_max = l_where_greater(largest, l_add(old_max, l_set(8)), largest, old_max);
  l_store(work.max + panel * 16, new_max);
  if (!summed) return;
  const TileLanes fall = l_max(l_set(-126), l_sub(old_max, new_max));
  const TileLanes factor = l_times_exp2(l_set(1), l_add(fall, l_set(0x1.8p23f)));
  l_store(work.total + panel * 16, l_mul(l_load(work.total + panel * 16), factor));
  float factors[16];
  l_store(factors, factor);
  float* row = work.sums + panel * work.value_panels * 256;
  for (int64_t p = 0; p < work.value_panels; ++p) {
    for (int r = 0; r < 16; ++r, row += 16) l_store(row, l_mul(l_load(row), l_set(factors[r])));
  }
}

// Scores of 32 positions to a tile of weights.
template <bool kMasked>
void weigh_pair(const TileAttention& work, int64_t panel, const float* scores, TileLimits limits,
                uint8_t* weights) {
  const TileLanes scale = l_set(work.scale);
  const TileLanes base = l_sub(l_set(0), l_load(work.max + panel * 16));
  TileLanes total = l_set(0);
  TileLanes other = l_set(0);
  TileWords words[16];
  NIBBLE_UNROLL for (int i = 0; i < 16; ++i) {
    TileLanes a = l_exp2(l_fma(l_load(scores + 32 * i), scale, base));
    TileLanes b = l_exp2(l_fma(l_load(scores + 32 * i + 16), scale, base));
    if constexpr (kMasked) {
      a = l_keep(limits, 2 * i, a, l_set(0));
      b = l_keep(limits, 2 * i + 1, b, l_set(0));
    }
    total = l_add(total, a);
    other = l_add(other, b);
    words[i] = l_pair(a, b);
  }
  l_store_transposed(words, weights);
  l_store(work.total + panel * 16, l_add(l_load(work.total + panel * 16), l_add(total, other)));
}

// Adds weights times values of `steps` steps of 32 positions from `first` on, for kPanels panels of
// rows and kValues panels of values. `summed`: there are sums to add to.
template <int kPanels, int kValues>
void value_pass(const TileAttention& work, int64_t panel, int64_t value, int64_t first,
                int64_t steps, bool summed, const uint8_t* weights) {
  float* const sums = work.sums + (panel * work.value_panels + value) * 256;
  float* const below = sums + work.value_panels * 256;
  if (summed) {
    t_load<0>(sums, 64);
    if constexpr (kValues > 1) t_load<1>(sums + 256, 64);
    if constexpr (kPanels > 1) t_load<2>(below, 64);
    if constexpr (kPanels > 1 && kValues > 1) t_load<3>(below + 256, 64);
  } else {
    t_zero<0>();
    t_zero<1>();
    t_zero<2>();
    t_zero<3>();
  }
  const uint8_t* const values = work.values + value * kTileValueBytes;
  const int64_t end = first + steps;
  constexpr bool kStaggered = kPanels == 2 && kValues == 2;
  const int64_t last_steps = kStaggered ? (steps < 3 ? steps : 3) : 0;
  for (int64_t step = first; step < end - last_steps; ++step) {
    t_load<4>(weights + step * kTileBytes, 64);
    if constexpr (kPanels > 1) t_load<5>(weights + kTileValueBytes + step * kTileBytes, 64);
    t_load<6>(values + step * kTileBytes, 64);
    t_dot<0, 4, 6>();
    if constexpr (kPanels > 1) t_dot<2, 5, 6>();
    if constexpr (kValues > 1) {
      t_load<7>(values + kTileValueBytes + step * kTileBytes, 64);
      t_dot<1, 4, 7>();
      if constexpr (kPanels > 1) t_dot<3, 5, 7>();
    }
  }
  const auto finish = [&]<int kTile>(float* out) __attribute__((always_inline)) {
    constexpr int kPanel = kTile / 2;
    constexpr int kValue = kTile % 2;
    for (int64_t step = end - last_steps; step < end; ++step) {
      t_load<4 + kPanel>(weights + kPanel * kTileValueBytes + step * kTileBytes, 64);
      t_load<6 + kValue>(values + kValue * kTileValueBytes + step * kTileBytes, 64);
      t_dot<kTile, 4 + kPanel, 6 + kValue>();
    }
    t_store<kTile>(out, 64);
  };
  finish.template operator()<0>(sums);
  if constexpr (kValues > 1) finish.template operator()<1>(sums + 256);
  if constexpr (kPanels > 1) finish.template operator()<2>(below);
  if constexpr (kPanels > 1 && kValues > 1) finish.template operator()<3>(below + 256);
}

template <int kPanels>
void add_values(const TileAttention& work, int64_t panel, int64_t first, int64_t steps, bool summed,
                const uint8_t* weights) {
  int64_t value = 0;
  for (; value + 2 <= work.value_panels; value += 2) {
    value_pass<kPanels, 2>(work, panel, value, first, steps, summed, weights);
  }
  if (value < work.value_panels) {
    value_pass<kPanels, 1>(work, panel, value, first, steps, summed, weights);
  }
}

// kPanels panels of rows from `panel` on.
template <int kPanels>
class PanelsAttention {
 public:
  PanelsAttention(const TileAttention& work, int64_t panel)
      : work_(work),
        panel_(panel),
        scores_(reinterpret_cast<float*>(work.scratch)),
        weights_(work.scratch + kTileScoreBytes) {}

  void attend(EntriesAhead* ahead, int ask_pieces) {
    const int64_t most = work_.visible[(panel_ + kPanels) * 16 - 1] - work_.start;
    if (most <= 0) return;
    const int64_t pairs = ((most < kTileContext ? most : kTileContext) + 31) / 32;
    for (int64_t pair = 0; pair <= pairs; ++pair) {
      if (pair < pairs) {
        score_pass<kPanels>(work_, panel_, pair, scores(pair));
        ask_ahead(ahead, ask_pieces);
      }
      if (pair == 0) continue;
      // Do all rows see all positions?
      if (work_.visible[panel_ * 16] - work_.start >= 32 * pair) {
        weigh<false>(pair - 1);
      } else {
        weigh<true>(pair - 1);
      }
    }
    add(pairs);
  }

 private:
  float* scores(int64_t pair) const { return scores_ + pair % 2 * 2 * kScoreFloats; }
  bool summed() const { return work_.start > 0 || added_ > 0; }

  // Sums take what was weighed before `pair`.
  void add(int64_t pair) {
    if (pair > added_) {
      add_values<kPanels>(work_, panel_, added_, pair - added_, summed(), weights_);
      added_ = pair;
    }
  }

  template <bool kMasked>
  void weigh(int64_t pair) {
    for (int p = 0; p < kPanels; ++p) {
      const int64_t panel = panel_ + p;
      const float* const from = scores(pair) + p * kScoreFloats;
      TileLimits limits = {};
      if constexpr (kMasked) limits = pair_limits(work_, panel, pair);
      const TileLanes largest = largest_scores<kMasked>(work_, from, limits);
      if (l_any_greater(largest, l_add(l_load(work_.max + panel * 16), l_set(8)))) {
        // The other panel may be a tile of weights ahead; the next to be added are both's.
        add(pair);
        raise_maxima(work_, panel, largest, summed());
      }
      weigh_pair<kMasked>(work_, panel, from, limits,
                          weights_ + p * kTileValueBytes + pair * kTileBytes);
    }
  }

  const TileAttention& work_;
  const int64_t panel_;
  float* const scores_;     // [2, 2] of kScoreFloats
  uint8_t* const weights_;  // [2, kTileContextSteps] tiles
  int64_t added_ = 0;       // steps of 32 positions
};

void tile_attend(const TileAttention& work) {
  const int64_t panels = (work.rows + 15) / 16;
  EntriesAhead ahead = {work.ask, work.asked, work.ask_bytes};
  const int64_t passes = (panels + 1) / 2 * kTileContextSteps;
  const auto ask_pieces = static_cast<int>((work.asked + passes - 1) / passes);
  t_configure(16, 16);
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2)
    PanelsAttention<2>(work, panel).attend(&ahead, ask_pieces);
  if (panel < panels) PanelsAttention<1>(work, panel).attend(&ahead, ask_pieces);
  t_release();
}

}  // namespace
}  // namespace nibble
