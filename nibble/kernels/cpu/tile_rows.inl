// Where a slice of rows keeps a row (tile_isa.h).

namespace nibble {
namespace {

// Rows of the tile that starts at row `first` of `rows`.
inline int64_t tile_height(int64_t first, int64_t rows) {
  return rows - first < 16 ? rows - first : 16;
}

// Row `row`'s 64 bytes of the slice's step 0, and the distance to those of the next step.
struct TileRow {
  uint8_t* first;
  int64_t step_bytes;
};
inline TileRow tile_row(void* slice, int64_t row, int64_t rows) {
  const int64_t tile = row / 16 * 16;
  return {static_cast<uint8_t*>(slice) + tile * kTileRecordBytes + (row - tile) * 64,
          tile_height(tile, rows) * 64};
}

}  // namespace
}  // namespace nibble
