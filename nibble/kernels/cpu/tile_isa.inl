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
  float* c[kTilePanels];
  int64_t cols;
  int64_t panel_bytes;
  const uint8_t* a;
  int64_t rows;
  int64_t slice_bytes;  // from one slice of rows to the next
  int64_t c_bytes;      // from one row of results to the next
  uint8_t* expanded;
};

// One step of one panel: 16 vectors of pairs, zeros past the last column.
template <PanelFormat kFormat>
inline __attribute__((always_inline)) void expand_step(const TileWork& work, int panel,
                                                       int64_t step, int64_t skip, uint8_t* out) {
  const uint8_t* const data = work.panel[panel];
  if constexpr (kFormat == PanelFormat::kNvfp4) {
    const int64_t blocks = work.cols / 16;
    const int64_t b = 2 * step;
    const Nvfp4Unit first = nvfp4_unit(data, blocks, b);
    // Past its end a panel's next is the one that the same registers take next.
    const int64_t offset = b * kNvfp4UnitBytes + kTileAheadBytes;
    const uint8_t* const ahead = data + offset + (offset >= work.panel_bytes ? skip : 0);
    NIBBLE_UNROLL for (int i = 0; i <= 4; ++i) __builtin_prefetch(ahead + 64 * i);
    t_expand_block(first.codes, first.scales, out);
    if (b + 1 < blocks) {
      const Nvfp4Unit second = nvfp4_unit(data, blocks, b + 1);
      t_expand_block(second.codes, second.scales, out + kTileBytes / 2);
    } else {
      t_clear(out + kTileBytes / 2, kTileBytes / 2);
    }
  } else {
    const int64_t first = step * kTileCols;
    const auto* const w = reinterpret_cast<const uint16_t*>(data) + first * kPanelRows;
    const int64_t left = work.cols - first;
    const int64_t offset = first * kPanelRows * 2 + kTileAheadBytes;
    const uint8_t* const ahead = data + offset + (offset >= work.panel_bytes ? skip : 0);
    NIBBLE_UNROLL for (int i = 0; i < 16; ++i) __builtin_prefetch(ahead + 64 * i);
    if (left >= kTileCols) {
      NIBBLE_UNROLL for (int i = 0; i < 4; ++i) t_pair_columns(w + 128 * i, out + 256 * i);
      return;
    }
    alignas(64) uint16_t part[kTileCols * kPanelRows] = {};
    __builtin_memcpy(part, w, static_cast<size_t>(left * kPanelRows * 2));
    for (int i = 0; i < 4; ++i) t_pair_columns(part + 128 * i, out + 256 * i);
  }
}

// What is asked for in passing: the next rows of activations, a few lines each step.
struct RowsAhead {
  const uint8_t* rows;
  int64_t slice_bytes;
  int64_t slice_lines;
  int64_t next;
  int64_t end;
  int64_t lines_per_step;
};

inline void ask_ahead(RowsAhead* ahead) {
  for (int64_t i = 0; i < ahead->lines_per_step && ahead->next < ahead->end; ++i, ++ahead->next) {
    const int64_t slice = ahead->next / ahead->slice_lines;
    __builtin_prefetch(
        ahead->rows + slice * ahead->slice_bytes + (ahead->next - slice * ahead->slice_lines) * 64,
        0, 2);
  }
}

enum class Expanded { kReady, kKept, kPassing };

// Steps first_step .. end_step of kRowTiles x kPanelTiles results from row `row` and panel `panel`.
// Where weights are not ready they are expanded, and kept or not.
template <PanelFormat kFormat, int kRowTiles, int kPanelTiles, Expanded kExpanded>
void tile_pass(const TileWork& work, int panel, int64_t row, int64_t first_step, int64_t end_step,
               RowsAhead* ahead) {
  static_assert(kRowTiles * kPanelTiles <= 4);
  constexpr int kColumn = 4 / kRowTiles;  // results of a row of tiles
  const auto place = [&](int p, int64_t step) {
    if constexpr (kExpanded == Expanded::kPassing) {
      return work.expanded + ((step & 1) * kPanelTiles + p) * kTileBytes;
    }
    return work.expanded + ((panel + p) * kTileDepthSteps + step - first_step) * kTileBytes;
  };
  const int64_t skip = (kPanelTiles - 1) * work.panel_bytes;
  const auto expand = [&](int p, int64_t step) {
    if constexpr (kExpanded != Expanded::kReady) {
      if (step < end_step) expand_step<kFormat>(work, panel + p, step, skip, place(p, step));
    }
  };
  const bool accumulate = first_step > 0;
  // Of the last tile of rows, for one step.
  const int64_t height_bytes = 64 * tile_height(row + 16 * (kRowTiles - 1), work.rows);
  const auto each_result = [&]<typename F>(F&& f) {
    const auto at = [&](int r, int p) {
      return reinterpret_cast<uint8_t*>(work.c[panel + p]) + (row + 16 * r) * work.c_bytes;
    };
    f.template operator()<0>(at(0, 0));
    if constexpr (kPanelTiles > 1) f.template operator()<1>(at(0, 1));
    if constexpr (kPanelTiles > 2) f.template operator()<2>(at(0, 2));
    if constexpr (kPanelTiles > 3) f.template operator()<3>(at(0, 3));
    if constexpr (kRowTiles > 1) {
      f.template operator()<kColumn>(at(1, 0));
      if constexpr (kPanelTiles > 1) f.template operator()<kColumn + 1>(at(1, 1));
    }
  };
  each_result([&]<int kTile>(const uint8_t* at) {
    if (accumulate) {
      t_load<kTile>(at, work.c_bytes);
    } else {
      t_zero<kTile>();
    }
  });
  for (int p = 0; p < kPanelTiles; ++p) expand(p, first_step);
  for (int64_t step = first_step; step < end_step; ++step) {
    const uint8_t* const rows = work.a + step / 4 * work.slice_bytes + row * kTileRecordBytes;
    t_load<4>(rows + step % 4 * (kRowTiles > 1 ? kTileBytes : height_bytes), 64);
    if constexpr (kRowTiles > 1) {
      t_load<5>(rows + 16 * kTileRecordBytes + step % 4 * height_bytes, 64);
    }
    const auto multiply = [&]<int kPanel>() {
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
  each_result([&]<int kTile>(uint8_t* at) { t_store<kTile>(at, work.c_bytes); });
}

// All panels for one or two tiles of rows.
template <PanelFormat kFormat, int kRowTiles, Expanded kExpanded>
void tile_rows(const TileWork& work, int panels, int64_t row, int64_t first_step, int64_t end_step,
               RowsAhead* ahead) {
  constexpr int kWide = NIBBLE_TILE_WIDE / kRowTiles;
  int p = 0;
  for (; p + kWide <= panels; p += kWide) {
    tile_pass<kFormat, kRowTiles, kWide, kExpanded>(work, p, row, first_step, end_step, ahead);
  }
  for (; p < panels; ++p) {
    tile_pass<kFormat, kRowTiles, 1, kExpanded>(work, p, row, first_step, end_step, ahead);
  }
}

template <PanelFormat kFormat>
void tile_product(const TileWork& work, int panels, int64_t rows) {
  const int64_t steps = (work.cols + kTileCols - 1) / kTileCols;
  if (rows <= 16) {
    t_configure(static_cast<int>(rows), 0);
    tile_rows<kFormat, 1, Expanded::kPassing>(work, panels, 0, 0, steps, nullptr);
    return;
  }
  if (rows <= 32) {
    t_configure(16, static_cast<int>(rows) - 16);
    tile_rows<kFormat, 2, Expanded::kPassing>(work, panels, 0, 0, steps, nullptr);
    return;
  }
  for (int64_t first = 0; first < steps; first += kTileDepthSteps) {
    const int64_t end = first + kTileDepthSteps < steps ? first + kTileDepthSteps : steps;
    t_configure(16, 16);
    for (int64_t row = 0; row < rows; row += 32) {
      const int64_t left = rows - row;
      const int64_t next = left > 64 ? 32 : left > 32 ? left - 32 : 0;
      RowsAhead ahead = {work.a + first / 4 * work.slice_bytes + (row + 32) * kTileRecordBytes,
                         work.slice_bytes,
                         next * (kTileRecordBytes / 64),
                         0,
                         (end - first + 3) / 4 * next * (kTileRecordBytes / 64),
                         0};
      const int64_t passes = (panels + 1) / 2 * (end - first);
      ahead.lines_per_step = (ahead.end + passes - 1) / passes;
      if (row == 0) {
        tile_rows<kFormat, 2, Expanded::kKept>(work, panels, row, first, end, &ahead);
      } else if (left >= 32) {
        tile_rows<kFormat, 2, Expanded::kReady>(work, panels, row, first, end, &ahead);
      } else if (left > 16) {
        t_configure(16, static_cast<int>(left) - 16);
        tile_rows<kFormat, 2, Expanded::kReady>(work, panels, row, first, end, nullptr);
      } else {
        t_configure(static_cast<int>(left), 0);
        tile_rows<kFormat, 1, Expanded::kReady>(work, panels, row, first, end, nullptr);
      }
    }
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
  float* const sums = scratch + tile_scratch_floats(0, 1);
  int panels = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    for (int64_t p = 0; p < parts[i].panels; ++p, ++panels) {
      work.panel[panels] =
          parts[i].matrix.data + (parts[i].first_panel + p) * parts[i].matrix.panel_bytes;
      work.c[panels] = planes == 1 ? parts[i].c + p * c_panel : sums + panels * kPanelRows;
    }
  }
  const int64_t sums_row = int64_t{panels} * kPanelRows;
  work.c_bytes = (planes == 1 ? c_row : sums_row) * static_cast<int64_t>(sizeof(float));
  if (parts[0].matrix.format == PanelFormat::kNvfp4) {
    tile_product<PanelFormat::kNvfp4>(work, panels, rows);
  } else {
    tile_product<PanelFormat::kBf16>(work, panels, rows);
  }
  t_release();
  if (planes == 1) return;
  int first = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t p = 0; p < parts[i].panels; ++p) {
        const float* const sum = sums + 2 * t * sums_row + (first + p) * kPanelRows;
        float* const out = parts[i].c + t * c_row + p * c_panel;
        NIBBLE_UNROLL for (int r = 0; r < kPanelRows; ++r) out[r] = sum[r] + sum[sums_row + r];
      }
    }
    first += static_cast<int>(parts[i].panels);
  }
}

}  // namespace
}  // namespace nibble
