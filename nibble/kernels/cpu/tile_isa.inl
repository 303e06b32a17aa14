// The tile products, written once over eight tiles (tile_simd_*.inl) and built for AMX and for
// plain loops, with internal linkage as in panel_isa.inl.
//
// Registers: results 0-3, rows 4-5, weights 6-7. With more than 16 rows results are 2 x 2 tiles, so
// that every loaded tile is used twice; with up to 16 they are 1 x 4.
//
// Up to 32 rows weights are expanded one step before they are multiplied, go through a buffer in L1
// and are forgotten. For more rows a block of kTileDepthSteps steps of two panels is expanded and
// stays in L1 for all of them, which is why rows are loaded past it. Results wait in L2 between
// blocks of steps: reading and writing them costs as much as three steps of products, so blocks are
// as long as L1 allows.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kTileCols = 32;

// How far ahead of its use a panel's data is asked for.
constexpr int64_t kTileAheadBytes = NIBBLE_TILE_AHEAD;

void tile_quantize(const float* x, int64_t count, int planes, int64_t token, int64_t tokens,
                   void* slice) {
  quantize_row<true>(x, count, planes, tile_row(slice, token, tokens, planes));
}

void tile_quantize_planes(const float* x, int64_t count, int planes, int64_t token, int64_t tokens,
                          void* slice) {
  quantize_row<false>(x, count, planes, tile_planes_row(slice, token, tokens, planes));
}

struct TileWork {
  const uint8_t* panel[kTilePanels];
  float* c[kTilePanels];  // where a panel's results go
  int panels;
  int64_t cols;
  int64_t steps;
  int64_t panel_bytes;
  const uint8_t* a;
  int64_t rows;
  int64_t slice_bytes;               // from one slice of rows to the next
  int64_t c_bytes;                   // from one row of results to the next
  bool keep_tiles;                   // results end up in `sums`, not in c
  const float* scales[kTilePanels];  // of slices, FP8 only
  uint8_t* expanded;
  float* partial;  // kPartialFloats
  float* sums;     // tiles of results between blocks of steps: [rows / 16, panels] of 1 kB
};

// As many columns as are left of 16 to a block of 16, zeros behind them.
template <typename T>
inline void copy_columns(const T* w, int64_t columns, T* block) {
  __builtin_memset(block, 0, 16 * kPanelRows * sizeof(T));
  if (columns > 0)
    __builtin_memcpy(block, w, static_cast<size_t>(columns) * kPanelRows * sizeof(T));
}

// Half a step of one panel, 8 vectors of pairs, zeros past the last column.
template <PanelFormat kFormat>
inline __attribute__((always_inline)) void expand_half(const uint8_t* data, int64_t cols,
                                                       int64_t half, uint8_t* out) {
  if constexpr (kFormat == PanelFormat::kNvfp4) {
    if (half < cols / 16) {
      const Nvfp4Unit unit = nvfp4_unit(data, cols / 16, half);
      t_expand_block(unit.codes, unit.scales, out);
    } else {
      t_clear(out, kTileBytes / 2);
    }
  } else {
    using T = std::conditional_t<kFormat == PanelFormat::kFp8, uint8_t, uint16_t>;
    const auto* w = reinterpret_cast<const T*>(data) + half * 16 * kPanelRows;
    const int64_t left = cols - half * 16;
    alignas(64) T part[16 * kPanelRows];
    if (left < 16) {
      copy_columns(w, left, part);
      w = part;
    }
    t_pair_columns(w, out);
    t_pair_columns(w + 8 * kPanelRows, out + 256);
  }
}

// One step of one panel: 16 vectors of pairs, zeros past the last column. From `asked` on, unless
// it is null, a step's bytes are asked for.
template <PanelFormat kFormat>
inline __attribute__((always_inline)) void expand_step(const uint8_t* data, int64_t cols,
                                                       int64_t step, int64_t panel_bytes,
                                                       const uint8_t* asked, uint8_t* out) {
  if constexpr (kFormat == PanelFormat::kNvfp4) {
    if (asked != nullptr) {
      NIBBLE_UNROLL for (int i = 0; i <= 4; ++i) __builtin_prefetch(asked + 64 * i);
    }
    // Two steps are a group of four blocks, codes first; a panel's last group may be shorter.
    constexpr int64_t kGroupBytes = kNvfp4GroupBlocks * kNvfp4UnitBytes;
    const int64_t offset = (step >> 1) * kGroupBytes;
    const int64_t odd = step & 1;
    const uint8_t* const group = data + offset;
    if (offset + kGroupBytes <= panel_bytes) {
      const uint8_t* const codes = group + 256 * odd;
      const uint8_t* const scales = group + 512 + 32 * odd;
      t_expand_block(codes, scales, out);
      t_expand_block(codes + 128, scales + 16, out + kTileBytes / 2);
      return;
    }
  } else {
    constexpr int kLines = kFormat == PanelFormat::kFp8 ? 8 : 16;
    if (asked != nullptr) {
      NIBBLE_UNROLL for (int i = 0; i < kLines; ++i) __builtin_prefetch(asked + 64 * i);
    }
  }
  expand_half<kFormat>(data, cols, 2 * step, out);
  expand_half<kFormat>(data, cols, 2 * step + 1, out + kTileBytes / 2);
}

template <PanelFormat kFormat>
constexpr int64_t kStepBytes = kFormat == PanelFormat::kNvfp4 ? int64_t{2} * kNvfp4UnitBytes
                               : kFormat == PanelFormat::kFp8 ? kTileCols* kPanelRows
                                                              : kTileCols* kPanelRows * 2;

// Where a panel's expanded step lies. Panels are a tile off each other, so that what is loaded
// together does not fall on the same sets of L1.
constexpr int64_t kExpandedPanelBytes = (kTileDepthSteps + 1) * kTileBytes;

// A block of steps of up to two panels.
struct WeightBlock {
  int panel;
  int panels;
  int64_t first_step;
  int64_t steps;
};

// All of it at once, for all rows.
template <PanelFormat kFormat>
void expand_block(const TileWork& work, const WeightBlock& block) {
  for (int p = 0; p < block.panels; ++p) {
    const uint8_t* const data = work.panel[block.panel + p];
    uint8_t* const out = work.expanded + p * kExpandedPanelBytes;
    for (int64_t step = 0; step < block.steps; ++step) {
      expand_step<kFormat>(data, work.cols, block.first_step + step, work.panel_bytes, nullptr,
                           out + step * kTileBytes);
    }
  }
}

// What is asked for in passing, a few lines each step: the rows of the next block of steps and the
// weights of the next block. All at once they would keep the rows of now waiting.
struct LinesAhead {
  const uint8_t* next;
  const uint8_t* end;
  int64_t per_step;
};
struct TileAhead {
  LinesAhead rows;
  LinesAhead weights[2];
};

inline LinesAhead lines_ahead(const uint8_t* data, int64_t bytes, int64_t steps) {
  return {data, data + bytes, bytes / 64 / steps + 1};
}

inline void ask_ahead(LinesAhead* lines) {
  for (int64_t i = 0; i < lines->per_step && lines->next < lines->end; ++i, lines->next += 64) {
    __builtin_prefetch(lines->next, 0, 2);
  }
}

inline void ask_ahead(TileAhead* ahead) {
  ask_ahead(&ahead->rows);
  ask_ahead(&ahead->weights[0]);
  ask_ahead(&ahead->weights[1]);
}

// `steps` steps from first_step on of kRowTiles x kPanelTiles results from row `row` and panel
// `panel`. In passing, weights are expanded here, otherwise they are ready from `ready_step` on,
// and `ahead` is asked for. Of FP8 weights, results start at 0 and end up in work.partial.
template <PanelFormat kFormat, int kRowTiles, int kPanelTiles, bool kPassing>
void tile_steps(const TileWork& work, int panel, int64_t row, int64_t first_step, int64_t steps,
                int64_t ready_step, TileAhead* ahead) {
  static_assert(kRowTiles * kPanelTiles <= 4);
  constexpr int kColumn = 4 / kRowTiles;  // results of a row of tiles
  const int64_t end_step = first_step + steps;
  const auto place = [&](int p, int64_t step) {
    const int64_t slot = kPassing ? step & 1 : step - ready_step;
    return work.expanded + p * kExpandedPanelBytes + slot * kTileBytes;
  };
  const auto expand = [&](int p, int64_t step) __attribute__((always_inline)) {
    // A panel is read to its end, and then the one that is walked in its place.
    if constexpr (kPassing) {
      if (step < end_step) {
        const int64_t at = step * kStepBytes<kFormat> + kTileAheadBytes;
        const int64_t skip = at >= work.panel_bytes ? (kPanelTiles - 1) * work.panel_bytes : 0;
        const uint8_t* const data = work.panel[panel + p];
        expand_step<kFormat>(data, work.cols, step, work.panel_bytes, data + at + skip,
                             place(p, step));
      }
    }
  };
  // f(place, stride) of each tile of results, `waiting` between blocks of steps or for good.
  const auto each_result = [&]<typename F>(bool waiting, F&& f) {
    const auto one = [&]<int kTile>(int r, int p) {
      if constexpr (kFormat == PanelFormat::kFp8) {
        f.template operator()<kTile>(
            reinterpret_cast<uint8_t*>(work.partial + (r * kColumn + p) * 256), 64);
      } else if (waiting) {
        f.template operator()<kTile>(reinterpret_cast<uint8_t*>(work.sums) +
                                         ((row / 16 + r) * work.panels + panel + p) * kTileBytes,
                                     64);
      } else {
        f.template operator()<kTile>(
            reinterpret_cast<uint8_t*>(work.c[panel + p]) + (row + 16 * r) * work.c_bytes,
            work.c_bytes);
      }
    };
    one.template operator()<0>(0, 0);
    if constexpr (kPanelTiles > 1) one.template operator()<1>(0, 1);
    if constexpr (kPanelTiles > 2) one.template operator()<2>(0, 2);
    if constexpr (kPanelTiles > 3) one.template operator()<3>(0, 3);
    if constexpr (kRowTiles > 1) {
      one.template operator()<kColumn>(1, 0);
      if constexpr (kPanelTiles > 1) one.template operator()<kColumn + 1>(1, 1);
    }
  };
  if (first_step > 0 && kFormat != PanelFormat::kFp8) {
    each_result(
        true, []<int kTile>(const uint8_t* at, int64_t stride) { t_load_once<kTile>(at, stride); });
  } else {
    each_result(true, []<int kTile>(const uint8_t*, int64_t) { t_zero<kTile>(); });
  }
  // Of the last tile of rows, for one step.
  const int64_t height_bytes = 64 * tile_height(row + 16 * (kRowTiles - 1), work.rows);
  const uint8_t* const first_rows = work.a + row * kTileRecordBytes;
  const int64_t slice_bytes = work.slice_bytes;
  NIBBLE_UNROLL for (int p = 0; p < kPanelTiles; ++p) expand(p, first_step);
  for (int64_t step = first_step; step < end_step; ++step) {
    const uint8_t* const rows = first_rows + (step >> 2) * slice_bytes;
    const auto load_rows = [&]<int kTile>(const uint8_t* at) __attribute__((always_inline)) {
      if constexpr (kPassing) {
        t_load<kTile>(at, 64);
      } else {
        t_load_once<kTile>(at, 64);
      }
    };
    load_rows.template operator()<4>(rows +
                                     (step & 3) * (kRowTiles > 1 ? kTileBytes : height_bytes));
    if constexpr (kRowTiles > 1) {
      load_rows.template operator()<5>(rows + 16 * kTileRecordBytes + (step & 3) * height_bytes);
    }
    const auto multiply = [&]<int kPanel>() __attribute__((always_inline)) {
      if constexpr (kPanel < kPanelTiles) {
        expand(kPanel, step + 1);
        t_load<6 + kPanel % 2>(place(kPanel, step), 64);
        t_dot<kPanel, 4, 6 + kPanel % 2>();
        if constexpr (kRowTiles > 1) t_dot<kColumn + kPanel, 5, 6 + kPanel % 2>();
      }
    };
    multiply.template operator()<0>();
    multiply.template operator()<1>();
    multiply.template operator()<2>();
    multiply.template operator()<3>();
    if constexpr (!kPassing) ask_ahead(ahead);
  }
  each_result(end_step < work.steps || work.keep_tiles,
              []<int kTile>(uint8_t* at, int64_t stride) { t_store<kTile>(at, stride); });
}

// The same, with the results added to what `steps` before them gave.
template <PanelFormat kFormat, int kRowTiles, int kPanelTiles, bool kPassing>
void tile_pass(const TileWork& work, int panel, int64_t row, int64_t first_step, int64_t steps,
               TileAhead* ahead) {
  if constexpr (kFormat != PanelFormat::kFp8) {
    tile_steps<kFormat, kRowTiles, kPanelTiles, kPassing>(work, panel, row, first_step, steps,
                                                          first_step, ahead);
  } else {
    constexpr int64_t kSliceSteps = kSliceCols / kTileCols;
    const int64_t end = first_step + steps;
    for (int64_t first = first_step; first < end; first += kSliceSteps) {
      const int64_t count = end - first < kSliceSteps ? end - first : kSliceSteps;
      tile_steps<kFormat, kRowTiles, kPanelTiles, kPassing>(work, panel, row, first, count,
                                                            first_step, ahead);
      const bool last = first + count == work.steps;
      for (int r = 0; r < kRowTiles; ++r) {
        const int64_t height = tile_height(row + 16 * r, work.rows);
        for (int p = 0; p < kPanelTiles; ++p) {
          const float scale = work.scales[panel + p][first / kSliceSteps];
          const float* const partial = work.partial + (r * (4 / kRowTiles) + p) * 256;
          float* const sums = work.sums + ((row / 16 + r) * work.panels + panel + p) * 256;
          float* const out = last ? work.c[panel + p] + (row + 16 * r) * (work.c_bytes / 4) : sums;
          const int64_t stride = last ? work.c_bytes / 4 : kPanelRows;
          t_add_scaled(partial, scale, first > 0 ? sums : nullptr, height, out, stride);
        }
      }
    }
  }
}

// All steps of up to 32 rows, whose weights are expanded in passing.
template <PanelFormat kFormat, int kRowTiles>
void tile_few_rows(const TileWork& work) {
  constexpr int kWide = 4 / kRowTiles;
  int p = 0;
  for (; p + kWide <= work.panels; p += kWide) {
    tile_pass<kFormat, kRowTiles, kWide, true>(work, p, 0, 0, work.steps, nullptr);
  }
  for (; p < work.panels; ++p) {
    tile_pass<kFormat, kRowTiles, 1, true>(work, p, 0, 0, work.steps, nullptr);
  }
}

// A block of weights, which are ready, for all rows.
template <PanelFormat kFormat, int kPanelTiles>
void tile_many_rows(const TileWork& work, const WeightBlock& block, TileAhead* ahead) {
  const int panel = block.panel;
  const int64_t first = block.first_step;
  int64_t row = 0;
  for (; row + 32 <= work.rows; row += 32) {
    tile_pass<kFormat, 2, kPanelTiles, false>(work, panel, row, first, block.steps, ahead);
  }
  const int64_t left = work.rows - row;
  if (left > 16) {
    t_configure(16, static_cast<int>(left) - 16);
    tile_pass<kFormat, 2, kPanelTiles, false>(work, panel, row, first, block.steps, ahead);
  } else if (left > 0) {
    t_configure(static_cast<int>(left), 0);
    tile_pass<kFormat, 1, kPanelTiles, false>(work, panel, row, first, block.steps, ahead);
  }
  if (left > 0) t_configure(16, 16);
}

template <PanelFormat kFormat>
void tile_product(const TileWork& work) {
  if (work.rows <= 16) {
    t_configure(static_cast<int>(work.rows), 0);
    tile_few_rows<kFormat, 1>(work);
    return;
  }
  if (work.rows <= 32) {
    t_configure(16, static_cast<int>(work.rows) - 16);
    tile_few_rows<kFormat, 2>(work);
    return;
  }
  static_assert(kTileDepthSteps % 4 == 0);
  const int64_t pairs = (work.panels + 1) / 2;
  const int64_t blocks = (work.steps + kTileDepthSteps - 1) / kTileDepthSteps * pairs;
  const auto block_at = [&](int64_t i) {
    const int panel = static_cast<int>(i % pairs) * 2;
    const int64_t first = i / pairs * kTileDepthSteps;
    const int64_t left = work.steps - first;
    return WeightBlock{panel, work.panels - panel < 2 ? 1 : 2, first,
                       left < kTileDepthSteps ? left : kTileDepthSteps};
  };
  const int64_t passes = (work.rows + 31) / 32;
  t_configure(16, 16);
  TileAhead ahead = {};
  for (int64_t i = 0; i < blocks; ++i) {
    const WeightBlock block = block_at(i);
    expand_block<kFormat>(work, block);
    const int64_t pass_steps = passes * block.steps;
    for (LinesAhead& lines : ahead.weights) lines = {};
    if (i + 1 < blocks) {
      const WeightBlock next = block_at(i + 1);
      for (int p = 0; p < next.panels; ++p) {
        ahead.weights[p] =
            lines_ahead(work.panel[next.panel + p] + next.first_step * kStepBytes<kFormat>,
                        next.steps * kStepBytes<kFormat>, pass_steps);
      }
    }
    if (i % pairs == 0) {
      const int64_t end = block.first_step + block.steps;
      const int64_t left = work.steps - end;
      const int64_t steps = left < kTileDepthSteps ? left : kTileDepthSteps;
      ahead.rows = lines_ahead(work.a + end / 4 * work.slice_bytes,
                               (steps + 3) / 4 * work.slice_bytes, pairs * pass_steps);
    }
    if (block.panels == 2) {
      tile_many_rows<kFormat, 2>(work, block, &ahead);
    } else {
      tile_many_rows<kFormat, 1>(work, block, &ahead);
    }
  }
}

struct ReadyWork {
  const uint8_t* a;
  int64_t a_slice;
  int64_t tokens;
  const uint8_t* b;
  int64_t b_panel;
  int64_t steps;
  float* c;
  int64_t c_row;
  int64_t c_panel;
  bool accumulate;
};

// kRowTiles x kPanelTiles results from `token` and `panel` on. A step's products come in the order
// second plane of rows, first planes, second plane of weights.
template <int kPlanes, int kWeightPlanes, int kRowTiles, int kPanelTiles>
void ready_pass(const ReadyWork& work, int64_t token, int64_t panel) {
  static_assert(kRowTiles <= 2 && kPanelTiles <= 2 && kPlanes <= 2 && kWeightPlanes <= 2);
  const auto each_result = [&]<typename F>(F&& f) {
    const auto one = [&]<int kTile>(int r, int p) {
      f.template operator()<kTile>(
          work.c + (token + 16 * r) * work.c_row + (panel + p) * work.c_panel,
          work.c_row * static_cast<int64_t>(sizeof(float)));
    };
    one.template operator()<0>(0, 0);
    if constexpr (kPanelTiles > 1) one.template operator()<1>(0, 1);
    if constexpr (kRowTiles > 1) one.template operator()<2>(1, 0);
    if constexpr (kRowTiles > 1 && kPanelTiles > 1) one.template operator()<3>(1, 1);
  };
  if (work.accumulate) {
    each_result([]<int kTile>(float* at, int64_t stride) { t_load<kTile>(at, stride); });
  } else {
    each_result([]<int kTile>(float*, int64_t) { t_zero<kTile>(); });
  }
  const int64_t height = 64 * tile_height(token + 16 * (kRowTiles - 1), work.tokens);
  const int64_t first_height = kRowTiles > 1 ? kTileBytes : height;
  const uint8_t* const first_rows = work.a + token * kTileRecordBytes * kPlanes;
  const uint8_t* const weights = work.b + panel * work.b_panel;
  for (int64_t step = 0; step < work.steps; ++step) {
    const uint8_t* const rows = first_rows + (step >> 2) * work.a_slice;
    const uint8_t* const tile = rows + (step & 3) * kPlanes * first_height;
    const uint8_t* const other =
        rows + 16 * kTileRecordBytes * kPlanes + (step & 3) * kPlanes * height;
    const uint8_t* const w = weights + step * kWeightPlanes * kTileBytes;
    const auto load_rows = [&](int plane) __attribute__((always_inline)) {
      t_load<4>(tile + plane * first_height, 64);
      if constexpr (kRowTiles > 1) t_load<5>(other + plane * height, 64);
    };
    const auto load_weights = [&](int plane) __attribute__((always_inline)) {
      t_load<6>(w + plane * kTileBytes, 64);
      if constexpr (kPanelTiles > 1) t_load<7>(w + work.b_panel + plane * kTileBytes, 64);
    };
    const auto dots = [&]() __attribute__((always_inline)) {
      t_dot<0, 4, 6>();
      if constexpr (kPanelTiles > 1) t_dot<1, 4, 7>();
      if constexpr (kRowTiles > 1) t_dot<2, 5, 6>();
      if constexpr (kRowTiles > 1 && kPanelTiles > 1) t_dot<3, 5, 7>();
    };
    load_weights(0);
    if constexpr (kPlanes > 1) {
      load_rows(1);
      dots();
    }
    load_rows(0);
    dots();
    if constexpr (kWeightPlanes > 1) {
      load_weights(1);
      dots();
    }
  }
  each_result([]<int kTile>(float* at, int64_t stride) { t_store<kTile>(at, stride); });
}

template <int kPlanes, int kWeightPlanes>
void ready_product(const ReadyWork& work, int64_t panels) {
  const auto all_panels = [&]<int kRowTiles>(int64_t token) {
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2)
      ready_pass<kPlanes, kWeightPlanes, kRowTiles, 2>(work, token, p);
    if (p < panels) ready_pass<kPlanes, kWeightPlanes, kRowTiles, 1>(work, token, p);
  };
  t_configure(16, 16);
  int64_t token = 0;
  for (; token + 32 <= work.tokens; token += 32) all_panels.template operator()<2>(token);
  const auto left = static_cast<int>(work.tokens - token);
  if (left > 16) {
    t_configure(16, left - 16);
    all_panels.template operator()<2>(token);
  } else if (left > 0) {
    t_configure(left, left);
    all_panels.template operator()<1>(token);
  }
  t_release();
}

void tile_multiply_expanded(const void* a, int64_t a_slice, int64_t tokens, int planes,
                            const void* b, int64_t b_panel, int64_t panels, int64_t steps,
                            int b_planes, float* c, int64_t c_row, int64_t c_panel,
                            bool accumulate) {
  const ReadyWork work = {static_cast<const uint8_t*>(a),
                          a_slice,
                          tokens,
                          static_cast<const uint8_t*>(b),
                          b_panel,
                          steps,
                          c,
                          c_row,
                          c_panel,
                          accumulate};
  if (planes == 1) {
    b_planes == 1 ? ready_product<1, 1>(work, panels) : ready_product<1, 2>(work, panels);
  } else {
    b_planes == 1 ? ready_product<2, 1>(work, panels) : ready_product<2, 2>(work, panels);
  }
}

void tile_multiply(const PanelPart* parts, int64_t num_parts, const void* a, int64_t tokens,
                   int planes, int64_t c_row, int64_t c_panel, float* scratch) {
  TileWork work;
  work.cols = parts[0].matrix.cols;
  work.steps = (work.cols + kTileCols - 1) / kTileCols;
  work.panel_bytes = parts[0].matrix.panel_bytes;
  work.a = static_cast<const uint8_t*>(a);
  work.rows = planes * tokens;
  work.slice_bytes = work.rows * kTileRecordBytes;
  work.expanded = reinterpret_cast<uint8_t*>(scratch);
  work.partial = scratch + kExpandedFloats - kPartialFloats;
  work.sums = scratch + kExpandedFloats;
  work.panels = 0;
  for (int64_t i = 0; i < num_parts; ++i) work.panels += static_cast<int>(parts[i].panels);
  work.c_bytes = c_row * static_cast<int64_t>(sizeof(float));
  work.keep_tiles = planes == 2;  // they are added up at the end
  int panel = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    for (int64_t p = 0; p < parts[i].panels; ++p, ++panel) {
      work.panel[panel] =
          parts[i].matrix.data + (parts[i].first_panel + p) * parts[i].matrix.panel_bytes;
      work.c[panel] = parts[i].c + p * c_panel;
      work.scales[panel] = nullptr;
      if (parts[i].matrix.format == PanelFormat::kFp8) {
        work.scales[panel] =
            parts[i].matrix.scales + (parts[i].first_panel + p) * parts[i].matrix.panel_scales;
      }
    }
  }
  if (parts[0].matrix.format == PanelFormat::kNvfp4) {
    tile_product<PanelFormat::kNvfp4>(work);
  } else if (parts[0].matrix.format == PanelFormat::kFp8) {
    tile_product<PanelFormat::kFp8>(work);
  } else {
    tile_product<PanelFormat::kBf16>(work);
  }
  t_release();
  if (planes == 1) return;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const first =
        work.sums + t / 8 * work.panels * (kTileBytes / 4) + t % 8 * 2 * kPanelRows;
    for (int p = 0; p < work.panels; ++p) {
      const float* const sum = first + p * (kTileBytes / 4);
      float* const out = work.c[p] + t * c_row;
      NIBBLE_UNROLL for (int r = 0; r < kPanelRows; ++r) out[r] = sum[r] + sum[kPanelRows + r];
    }
  }
}

}  // namespace
}  // namespace nibble
