// Where the cpu backend keeps a packed weight: panels of 16 rows (panel_isa.h), then FP8's scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nibble/kernels/cpu/panel_isa.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

inline constexpr int64_t kPanelFloats = int64_t{kSliceCols} * kPanelRows;  // one slice of a panel
inline constexpr int64_t kGroupFloats = kGroupPanels * kPanelFloats;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t panels_of(int64_t rows) { return ceil_div(rows, kPanelRows); }
inline int64_t slices_of(int64_t cols) { return ceil_div(cols, kSliceCols); }
inline int64_t groups_of(int64_t rows) { return ceil_div(rows, kGroupPanels * kPanelRows); }

PanelFormat panel_format(LinearFormat format);

// Bytes of one panel of `cols` columns, without FP8's scales.
int64_t panel_bytes(LinearFormat format, int64_t cols);

// Bytes of `panels` panels, and where FP8's scales start in them.
struct PackedSize {
  int64_t scales_offset;
  int64_t bytes;
};
PackedSize packed_size(LinearFormat format, int64_t panels, int64_t cols);

// A weight that CpuKernels::pack made, as the inner loops see it; `rows` is CpuKernels::row_format
// or kFloat, which every weight takes.
PanelMatrix panel_matrix(const LinearWeight& weight, RowFormat rows);

// What one row takes of one slice, in floats; at most kSliceCols.
int64_t row_slice_floats(RowFormat rows);

// How MLA's kv_b_proj is laid out: for each head its rows of W_UK, padded to whole panels, then
// those of W_UV. kv_b_k_trans is W_UK^T: for each head kv_lora_rank rows, padded, of
// qk_nope_head_dim columns.
struct MlaPanels {
  explicit MlaPanels(const MlaShape& shape)
      : nope(panels_of(shape.qk_nope_head_dim)),
        value(panels_of(shape.v_head_dim)),
        latent(panels_of(shape.kv_lora_rank)) {}
  int64_t head() const { return nope + value; }

  int64_t nope;    // panels of one head's W_UK
  int64_t value;   // of its W_UV
  int64_t latent;  // of its W_UK^T
};

}  // namespace nibble
