#include "nibble/kernels/cpu/panel_layout.h"

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/block_isa.h"
#include "nibble/kernels/cpu/tile_isa.h"

namespace nibble {

static_assert(kSliceCols == kFp8BlockSize, "a slice has one FP8 scale for each panel");

PanelFormat panel_format(LinearFormat format) {
  switch (format) {
    case LinearFormat::kF32:
      return PanelFormat::kF32;
    case LinearFormat::kBf16:
      return PanelFormat::kBf16;
    case LinearFormat::kFp8Block:
      return PanelFormat::kFp8;
    case LinearFormat::kNvfp4:
      return PanelFormat::kNvfp4;
  }
  return PanelFormat::kF32;
}

int64_t panel_bytes(LinearFormat format, int64_t cols) {
  switch (format) {
    case LinearFormat::kF32:
      return cols * kPanelRows * 4;
    case LinearFormat::kBf16:
      return cols * kPanelRows * 2;
    case LinearFormat::kFp8Block:
      return cols * kPanelRows;
    case LinearFormat::kNvfp4:
      return cols / 16 * kNvfp4UnitBytes;
  }
  return 0;
}

PackedSize packed_size(LinearFormat format, int64_t panels, int64_t cols) {
  const int64_t data = panels * panel_bytes(format, cols);
  const int64_t offset = ceil_div(data, 64) * 64;
  const int64_t scales = format == LinearFormat::kFp8Block ? panels * slices_of(cols) * 4 : 0;
  return {offset, offset + scales};
}

int64_t row_slice_floats(RowFormat rows) {
  switch (rows) {
    case RowFormat::kFloat:
      return kSliceCols;
    case RowFormat::kInt16:
      return kInt16RecordBytes / 4;
    case RowFormat::kInt8:
      return kInt8RecordBytes / 4;
    case RowFormat::kBf16:
      return kTileRecordBytes / 4;
    case RowFormat::kBf16Split:
      return 2 * kTileRecordBytes / 4;
  }
  return kSliceCols;
}

PanelMatrix panel_matrix(const LinearWeight& weight, RowFormat rows) {
  return {static_cast<const uint8_t*>(weight.data),
          static_cast<const float*>(weight.scales),
          weight.cols,
          panel_bytes(weight.format, weight.cols),
          slices_of(weight.cols),
          panel_format(weight.format),
          rows};
}

}  // namespace nibble
