// tile_attention.h's loops, built for AMX and for plain loops as tile_isa.inl is.
//
// Tiles: results 0-3, two by two; 4 and 5 hold two tiles of keys, then of weights; 6 and 7 queries,
// then values. Queries and weights of 32 rows stay in L1 while keys and values pass from L2.

namespace nibble {
namespace {

constexpr int64_t kScoreFloats = kTileContext * 16;  // of a panel of rows

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
  for (int64_t step = 0; step < work.steps; ++step) {
    t_load<6>(queries + step * kTileBytes, 64);
    if constexpr (kPanels > 1) t_load<7>(queries + (work.steps + step) * kTileBytes, 64);
    t_load<4>(first + 64 * step, work.key_stride);
    t_dot<0, 4, 6>();
    if constexpr (kPanels > 1) t_dot<1, 4, 7>();
    t_load<5>(second + 64 * step, work.key_stride);
    t_dot<2, 5, 6>();
    if constexpr (kPanels > 1) t_dot<3, 5, 7>();
  }
  float* const out = scores + pair * 32 * 16;
  t_store<0>(out, 64);
  t_store<2>(out + 256, 64);
  if constexpr (kPanels > 1) {
    t_store<1>(out + kScoreFloats, 64);
    t_store<3>(out + kScoreFloats + 256, 64);
  }
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

// Scores of one panel of rows to weights. kMasked: not every row sees all of the positions.
template <bool kMasked>
void weigh_panel(const TileAttention& work, int64_t panel, int64_t pairs, const float* scores,
                 uint8_t* weights) {
  const TileLanes lowest = l_set(-__builtin_inff());
  const TileLanes scale = l_set(work.scale);
  int32_t limit[16];
  for (int i = 0; i < 16; ++i) {
    const int64_t seen = work.visible[panel * 16 + i] - work.start;
    limit[i] = static_cast<int32_t>(seen < kTileContext ? seen : kTileContext);
  }
  const TileLimits limits = l_limits(limit);
  const auto masked = [&](int64_t i, TileLanes v, TileLanes fill) __attribute__((always_inline)) {
    if constexpr (kMasked) return l_keep(limits, static_cast<int32_t>(i), v, fill);
    return v;
  };
  TileLanes largest[4] = {lowest, lowest, lowest, lowest};
  for (int64_t i = 0; i < 32 * pairs; i += 4) {
    NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
      largest[j] = l_max(largest[j], masked(i + j, l_load(scores + (i + j) * 16), lowest));
    }
  }
  // A NaN may get lost here; its own weight is NaN and the sum with it.
  const TileLanes block_max =
      l_ceil(l_mul(scale, l_max(l_max(largest[0], largest[1]), l_max(largest[2], largest[3]))));
  const TileLanes old_max = l_load(work.max + panel * 16);
  const TileLanes limit_max = l_add(old_max, l_set(8));
  TileLanes total = l_load(work.total + panel * 16);
  if (l_any_greater(block_max, limit_max)) {
    const TileLanes new_max = l_where_greater(block_max, limit_max, block_max, old_max);
    l_store(work.max + panel * 16, new_max);
    if (work.start > 0) {
      const TileLanes fall = l_max(l_set(-126), l_sub(old_max, new_max));
      const TileLanes factor = l_times_exp2(l_set(1), l_add(fall, l_set(0x1.8p23f)));
      total = l_mul(total, factor);
      float factors[16];
      l_store(factors, factor);
      float* row = work.sums + panel * work.value_panels * 256;
      for (int64_t p = 0; p < work.value_panels; ++p) {
        for (int r = 0; r < 16; ++r, row += 16) l_store(row, l_mul(l_load(row), l_set(factors[r])));
      }
    }
  }
  const TileLanes base = l_sub(l_set(0), l_load(work.max + panel * 16));
  TileLanes other = l_set(0);
  for (int64_t step = 0; step < pairs; ++step) {
    TileWords words[16];
    NIBBLE_UNROLL for (int i = 0; i < 16; ++i) {
      const int64_t at = step * 32 + 2 * i;
      const float* const score = scores + at * 16;
      const TileLanes a = masked(at, l_exp2(l_fma(l_load(score), scale, base)), l_set(0));
      const TileLanes b = masked(at + 1, l_exp2(l_fma(l_load(score + 16), scale, base)), l_set(0));
      total = l_add(total, a);
      other = l_add(other, b);
      words[i] = l_pair(a, b);
    }
    l_store_transposed(words, weights + step * kTileBytes);
  }
  l_store(work.total + panel * 16, l_add(total, other));
}

// Adds weights times values for kPanels panels of rows and kValues panels of values.
template <int kPanels, int kValues>
void value_pass(const TileAttention& work, int64_t panel, int64_t value, int64_t steps,
                const uint8_t* weights) {
  float* const sums = work.sums + (panel * work.value_panels + value) * 256;
  float* const below = sums + work.value_panels * 256;
  if (work.start > 0) {
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
  for (int64_t step = 0; step < steps; ++step) {
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
  t_store<0>(sums, 64);
  if constexpr (kValues > 1) t_store<1>(sums + 256, 64);
  if constexpr (kPanels > 1) t_store<2>(below, 64);
  if constexpr (kPanels > 1 && kValues > 1) t_store<3>(below + 256, 64);
}

template <int kPanels>
void attend_panels(const TileAttention& work, int64_t panel, EntriesAhead* ahead, int ask_pieces) {
  auto* const scores = reinterpret_cast<float*>(work.scratch);
  uint8_t* const weights = work.scratch + 2 * kScoreFloats * 4;
  const int64_t most = work.visible[(panel + kPanels) * 16 - 1] - work.start;
  if (most <= 0) return;
  const int64_t pairs = ((most < kTileContext ? most : kTileContext) + 31) / 32;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    score_pass<kPanels>(work, panel, pair, scores);
    ask_ahead(ahead, ask_pieces);
  }
  for (int p = 0; p < kPanels; ++p) {
    const bool all_seen = work.visible[(panel + p) * 16] - work.start >= 32 * pairs;
    const float* const from = scores + p * kScoreFloats;
    uint8_t* const to = weights + p * kTileValueBytes;
    if (all_seen) {
      weigh_panel<false>(work, panel + p, pairs, from, to);
    } else {
      weigh_panel<true>(work, panel + p, pairs, from, to);
    }
  }
  int64_t value = 0;
  for (; value + 2 <= work.value_panels; value += 2) {
    value_pass<kPanels, 2>(work, panel, value, pairs, weights);
  }
  if (value < work.value_panels) value_pass<kPanels, 1>(work, panel, value, pairs, weights);
}

void tile_attend(const TileAttention& work) {
  const int64_t panels = (work.rows + 15) / 16;
  EntriesAhead ahead = {work.ask, work.asked, work.ask_bytes};
  const int64_t passes = (panels + 1) / 2 * kTileContextSteps;
  const auto ask_pieces = static_cast<int>((work.asked + passes - 1) / passes);
  t_configure(16, 16);
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2) attend_panels<2>(work, panel, &ahead, ask_pieces);
  if (panel < panels) attend_panels<1>(work, panel, &ahead, ask_pieces);
  t_release();
}

}  // namespace
}  // namespace nibble
