// Where a slice of rows keeps a row or a token's planes (tile_isa.h).

namespace nibble {
namespace {

// Rows of the tile that starts at row `first` of `rows`.
inline int64_t tile_height(int64_t first, int64_t rows) {
  return rows - first < 16 ? rows - first : 16;
}

// A token's 64 bytes of the slice's step 0 and first plane, and the distances to those of the next
// plane and of the next step.
struct TileRow {
  uint8_t* first;
  int64_t plane_bytes;
  int64_t step_bytes;
};

// Planes are neighbouring rows, which are of the same tile: tiles begin with even rows.
inline TileRow tile_row(void* slice, int64_t token, int64_t tokens, int planes) {
  const int64_t row = planes * token;
  const int64_t tile = row / 16 * 16;
  return {static_cast<uint8_t*>(slice) + tile * kTileRecordBytes + (row - tile) * 64, 64,
          tile_height(tile, planes * tokens) * 64};
}

// Planes are tiles of their own.
inline TileRow tile_planes_row(void* slice, int64_t token, int64_t tokens, int planes) {
  const int64_t tile = token / 16 * 16;
  const int64_t plane_bytes = tile_height(tile, tokens) * 64;
  return {static_cast<uint8_t*>(slice) + tile * kTileRecordBytes * planes + (token - tile) * 64,
          plane_bytes, plane_bytes * planes};
}

}  // namespace
}  // namespace nibble
