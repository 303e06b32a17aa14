// The tile products, written once over eight tiles (tile_simd_*.inl) and built for AMX and for
// plain loops, with internal linkage as in panel_isa.inl.
//
// Registers: results 0-3, rows 4-5, weights 6-7. With more than 16 rows results are 2 x 2 tiles, so
// that every loaded tile is used twice; with up to 16 they are 1 x 4. Weights are expanded tile by
// tile one step before they are multiplied, which lets the vector units work beside the tiles'. Up
// to 32 rows they go through a buffer in L1 and are forgotten; for more rows kTileDepthSteps steps
// of all panels stay in L2 for the rows that follow, and results wait in memory between such
// blocks.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kTileCols = 32;

// How far ahead of its use a panel's data is asked for.
constexpr int64_t kTileAheadBytes = NIBBLE_TILE_AHEAD;

struct TileWork {
  const uint8_t* panel[kTilePanels];
  float* c[kTilePanels];  // where a panel's results go
  int64_t cols;
  int64_t panel_bytes;
  const uint8_t* a;
  int64_t rows;
  int64_t slice_bytes;  // from one slice of rows to the next
  int64_t c_bytes;      // from one row of results to the next
  uint8_t* expanded;
  float* sums;  // tiles of results between blocks of steps: [rows / 16, kTilePanels] of 1 kB
};

// One step of one panel: 16 vectors of pairs, zeros past the last column. `skip`: from a panel to
// the one that is walked in its place when it ends.
template <PanelFormat kFormat>
inline __attribute__((always_inline)) void expand_step(const uint8_t* data, int64_t cols,
                                                       int64_t step, int64_t panel_bytes,
                                                       int64_t ahead_bytes, int64_t skip,
                                                       uint8_t* out) {
  if constexpr (kFormat == PanelFormat::kNvfp4) {
    // Two steps are a group of four blocks, codes first; a panel's last group may be shorter.
    constexpr int64_t kGroupBytes = kNvfp4GroupBlocks * kNvfp4UnitBytes;
    const int64_t offset = (step >> 1) * kGroupBytes;
    const int64_t odd = step & 1;
    const int64_t ahead = offset + odd * (kGroupBytes / 2) + ahead_bytes;
    const uint8_t* const next = data + ahead + (ahead >= panel_bytes ? skip : 0);
    NIBBLE_UNROLL for (int i = 0; i <= 4; ++i) __builtin_prefetch(next + 64 * i);
    const uint8_t* const group = data + offset;
    if (offset + kGroupBytes <= panel_bytes) {
      const uint8_t* const codes = group + 256 * odd;
      const uint8_t* const scales = group + 512 + 32 * odd;
      t_expand_block(codes, scales, out);
      t_expand_block(codes + 128, scales + 16, out + kTileBytes / 2);
      return;
    }
    const int64_t blocks = cols / 16;
    for (int64_t i = 0; i < 2; ++i) {
      if (2 * step + i < blocks) {
        const Nvfp4Unit unit = nvfp4_unit(data, blocks, 2 * step + i);
        t_expand_block(unit.codes, unit.scales, out + i * (kTileBytes / 2));
      } else {
        t_clear(out + i * (kTileBytes / 2), kTileBytes / 2);
      }
    }
  } else {
    const int64_t first = step * kTileCols;
    const auto* const w = reinterpret_cast<const uint16_t*>(data) + first * kPanelRows;
    const int64_t left = cols - first;
    const int64_t ahead = first * kPanelRows * 2 + ahead_bytes;
    const uint8_t* const next = data + ahead + (ahead >= panel_bytes ? skip : 0);
    NIBBLE_UNROLL for (int i = 0; i < 16; ++i) __builtin_prefetch(next + 64 * i);
    if (left >= kTileCols) {
      NIBBLE_UNROLL for (int i = 0; i < 4; ++i) t_pair_columns(w + 128 * i, out + 256 * i);
      return;
    }
    alignas(64) uint16_t part[kTileCols * kPanelRows] = {};
    __builtin_memcpy(part, w, static_cast<size_t>(left * kPanelRows * 2));
    for (int i = 0; i < 4; ++i) t_pair_columns(part + 128 * i, out + 256 * i);
  }
}

// What is asked for in passing, a few lines each step: the rows of the next block of steps.
struct RowsAhead {
  const uint8_t* next;
  const uint8_t* end;
  int lines_per_step;
};

inline void ask_ahead(RowsAhead* ahead) {
  for (int i = 0; i < ahead->lines_per_step && ahead->next < ahead->end; ++i, ahead->next += 64) {
    __builtin_prefetch(ahead->next, 0, 2);
  }
}

enum class Expanded { kReady, kKept, kPassing };

// Where a panel's expanded step lies. Panels are a tile off each other, so that what is loaded
// together does not fall on the same sets of L1.
constexpr int64_t kExpandedPanelBytes = (kTileDepthSteps + 1) * kTileBytes;

// Steps first_step .. end_step of kRowTiles x kPanelTiles results from row `row` and panel `panel`.
// Where weights are not ready they are expanded, and kept or not.
template <PanelFormat kFormat, int kRowTiles, int kPanelTiles, Expanded kExpanded>
void tile_pass(const TileWork& work, int panel, int64_t row, int64_t first_step, int64_t end_step,
               RowsAhead* ahead) {
  static_assert(kRowTiles * kPanelTiles <= 4);
  constexpr int kColumn = 4 / kRowTiles;  // results of a row of tiles
  const int64_t panel_bytes = work.panel_bytes;
  const int64_t cols = work.cols;
  // In passing, a panel is read to its end, and then the one that is walked in its place; kept, its
  // block of steps is, and then that of the next panels.
  const bool passing = kExpanded == Expanded::kPassing;
  const int64_t ahead_bytes = passing ? kTileAheadBytes : kPanelTiles * panel_bytes;
  const int64_t skip = passing ? (kPanelTiles - 1) * panel_bytes : 0;
  const uint8_t* data[kPanelTiles];
  NIBBLE_UNROLL for (int p = 0; p < kPanelTiles; ++p) data[p] = work.panel[panel + p];
  uint8_t* const expanded = work.expanded;
  const auto place = [&](int p, int64_t step) {
    const int64_t slot = kExpanded == Expanded::kPassing ? step & 1 : step - first_step;
    return expanded + p * kExpandedPanelBytes + slot * kTileBytes;
  };
  const auto expand = [&](int p, int64_t step) __attribute__((always_inline)) {
    if constexpr (kExpanded != Expanded::kReady) {
      if (step < end_step) {
        expand_step<kFormat>(data[p], cols, step, panel_bytes, ahead_bytes, skip, place(p, step));
      }
    }
  };
  const int64_t steps = (cols + kTileCols - 1) / kTileCols;
  // f(place, stride) of each tile of results, `waiting` between blocks of steps or for good.
  const auto each_result = [&]<typename F>(bool waiting, F&& f) {
    const auto one = [&]<int kTile>(int r, int p) {
      if (waiting) {
        f.template operator()<kTile>(reinterpret_cast<uint8_t*>(work.sums) +
                                         ((row / 16 + r) * kTilePanels + panel + p) * kTileBytes,
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
  if (first_step > 0) {
    each_result(true,
                []<int kTile>(const uint8_t* at, int64_t stride) { t_load<kTile>(at, stride); });
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
    t_load<4>(rows + (step & 3) * (kRowTiles > 1 ? kTileBytes : height_bytes), 64);
    if constexpr (kRowTiles > 1) {
      t_load<5>(rows + 16 * kTileRecordBytes + (step & 3) * height_bytes, 64);
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
    if (ahead != nullptr) ask_ahead(ahead);
  }
  each_result(end_step < steps,
              []<int kTile>(uint8_t* at, int64_t stride) { t_store<kTile>(at, stride); });
}

// All steps of up to 32 rows, whose weights are expanded in passing.
template <PanelFormat kFormat, int kRowTiles>
void tile_few_rows(const TileWork& work, int panels, int64_t steps) {
  constexpr int kWide = 4 / kRowTiles;
  int p = 0;
  for (; p + kWide <= panels; p += kWide) {
    tile_pass<kFormat, kRowTiles, kWide, Expanded::kPassing>(work, p, 0, 0, steps, nullptr);
  }
  for (; p < panels; ++p) {
    tile_pass<kFormat, kRowTiles, 1, Expanded::kPassing>(work, p, 0, 0, steps, nullptr);
  }
}

// A block of steps of one or two panels for all rows. The weights, expanded for the first rows,
// stay in L1 while rows and results come from L2.
template <PanelFormat kFormat, int kPanelTiles>
void tile_many_rows(const TileWork& work, int panel, int64_t first, int64_t end, RowsAhead* ahead) {
  t_configure(16, 16);
  tile_pass<kFormat, 2, kPanelTiles, Expanded::kKept>(work, panel, 0, first, end, ahead);
  int64_t row = 32;
  for (; row + 32 <= work.rows; row += 32) {
    tile_pass<kFormat, 2, kPanelTiles, Expanded::kReady>(work, panel, row, first, end, ahead);
  }
  const int64_t left = work.rows - row;
  if (left > 16) {
    t_configure(16, static_cast<int>(left) - 16);
    tile_pass<kFormat, 2, kPanelTiles, Expanded::kReady>(work, panel, row, first, end, nullptr);
  } else if (left > 0) {
    t_configure(static_cast<int>(left), 0);
    tile_pass<kFormat, 1, kPanelTiles, Expanded::kReady>(work, panel, row, first, end, nullptr);
  }
}

template <PanelFormat kFormat>
void tile_product(const TileWork& work, int panels) {
  const int64_t rows = work.rows;
  const int64_t steps = (work.cols + kTileCols - 1) / kTileCols;
  if (rows <= 16) {
    t_configure(static_cast<int>(rows), 0);
    tile_few_rows<kFormat, 1>(work, panels, steps);
    return;
  }
  if (rows <= 32) {
    t_configure(16, static_cast<int>(rows) - 16);
    tile_few_rows<kFormat, 2>(work, panels, steps);
    return;
  }
  static_assert(kTileDepthSteps % 4 == 0);
  for (int64_t first = 0; first < steps; first += kTileDepthSteps) {
    const int64_t end = first + kTileDepthSteps < steps ? first + kTileDepthSteps : steps;
    const uint8_t* const next = work.a + (first + kTileDepthSteps) / 4 * work.slice_bytes;
    const int64_t next_steps = steps - end < kTileDepthSteps ? steps - end : kTileDepthSteps;
    const int64_t next_bytes = (next_steps + 3) / 4 * work.slice_bytes;
    const int64_t passes = (panels + 1) / 2 * (rows / 32) * (end - first);
    RowsAhead ahead = {next, next + next_bytes, static_cast<int>(next_bytes / 64 / passes) + 1};
    int p = 0;
    for (; p + 2 <= panels; p += 2) tile_many_rows<kFormat, 2>(work, p, first, end, &ahead);
    if (p < panels) tile_many_rows<kFormat, 1>(work, p, first, end, &ahead);
  }
}

void tile_multiply(const PanelPart* parts, int64_t num_parts, const void* a, int64_t tokens,
                   int planes, int64_t c_row, int64_t c_panel, float* scratch) {
  const int64_t rows = planes * tokens;
  TileWork work;
  work.cols = parts[0].matrix.cols;
  work.panel_bytes = parts[0].matrix.panel_bytes;
  work.a = static_cast<const uint8_t*>(a);
  work.rows = rows;
  work.slice_bytes = rows * kTileRecordBytes;
  work.expanded = reinterpret_cast<uint8_t*>(scratch);
  work.sums = scratch + kExpandedFloats;
  float* const planes_sums = work.sums + tile_rows_floats(rows);
  int panels = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    for (int64_t p = 0; p < parts[i].panels; ++p, ++panels) {
      work.panel[panels] =
          parts[i].matrix.data + (parts[i].first_panel + p) * parts[i].matrix.panel_bytes;
      work.c[panels] = planes == 1 ? parts[i].c + p * c_panel : planes_sums + panels * kPanelRows;
    }
  }
  const int64_t sums_row = int64_t{panels} * kPanelRows;
  work.c_bytes = (planes == 1 ? c_row : sums_row) * static_cast<int64_t>(sizeof(float));
  if (parts[0].matrix.format == PanelFormat::kNvfp4) {
    tile_product<PanelFormat::kNvfp4>(work, panels);
  } else {
    tile_product<PanelFormat::kBf16>(work, panels);
  }
  t_release();
  if (planes == 1) return;
  int first = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t p = 0; p < parts[i].panels; ++p) {
        const float* const sum = planes_sums + 2 * t * sums_row + (first + p) * kPanelRows;
        float* const out = parts[i].c + t * c_row + p * c_panel;
        NIBBLE_UNROLL for (int r = 0; r < kPanelRows; ++r) out[r] = sum[r] + sum[sums_row + r];
      }
    }
    first += static_cast<int>(parts[i].panels);
  }
}

}  // namespace
}  // namespace nibble
