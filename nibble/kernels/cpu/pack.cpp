// Checkpoint layout to panels: transposing 16 rows at a time.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/dequantize.h"
#include "nibble/kernels/source_codes.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

// out[k * 16 + r] = rows[r][k]; a null row is zeros.
template <typename T>
void transpose_panel(const T* const* rows, int64_t cols, T* out) {
  // A few lines of each row at a time, so that source lines and destination stay in L1.
  constexpr int64_t kStep = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t first = 0; first < cols; first += kStep) {
    const int64_t end = first + kStep < cols ? first + kStep : cols;
    for (int r = 0; r < kPanelRows; ++r) {
      const T* const row = rows[r];
      if (row == nullptr) {
        for (int64_t k = first; k < end; ++k) out[k * kPanelRows + r] = T{};
      } else {
        for (int64_t k = first; k < end; ++k) out[k * kPanelRows + r] = row[k];
      }
    }
  }
}

// E5M3: exponents are 8 higher than E4M3's, so that its subnormals m * 2^-9 are normal.
constexpr uint8_t kScaleOne = (7 + 8) << 3;
uint8_t e5m3_from_e4m3(uint8_t code) {
  if (code >= 8) return static_cast<uint8_t>(code + (8 << 3));
  const int exponent = code >= 4 ? 2 : code >= 2 ? 1 : 0;  // of the fraction m = 1 .. 7
  const int fraction = (code << (3 - exponent)) & 7;
  return static_cast<uint8_t>((exponent - 9 + 7 + 8) << 3 | fraction);
}

std::array<uint8_t, 256> e5m3_codes() {
  std::array<uint8_t, 256> codes = {};
  for (int code = 1; code < 0x7f; ++code) {
    codes[static_cast<size_t>(code)] = e5m3_from_e4m3(static_cast<uint8_t>(code));
  }
  return codes;
}

// `in_group` blocks from block `first` on of 16 rows of NVFP4 (a null row is padding), as one group
// of the panel's layout.
void pack_group(const uint8_t* const* codes, const uint8_t* const* block_scales, int64_t first,
                int64_t in_group, uint8_t* group) {
  for (int64_t b = 0; b < in_group; ++b) {
    uint8_t* const unit = group + 128 * b;
    uint8_t* const group_scales = group + 128 * in_group + 16 * b;
    for (int r = 0; r < kPanelRows; ++r) {
      uint32_t halves[2] = {};
      // A scale of 0 becomes codes of 0 with scale 1.
      const uint8_t scale = block_scales[r] == nullptr ? uint8_t{0} : block_scales[r][first + b];
      if (scale != 0) std::memcpy(halves, codes[r] + 8 * (first + b), sizeof(halves));
      std::memcpy(unit + 4 * r, &halves[0], 4);
      std::memcpy(unit + 64 + 4 * r, &halves[1], 4);
      group_scales[r] = scale == 0 ? kScaleOne : e5m3_from_e4m3(scale);
    }
  }
}

using Words = uint32_t __attribute__((vector_size(16)));

// The same for a whole group of 16 rows without padding, four words of four rows at a time. False,
// and nothing of use is written, where a scale is 0.
bool pack_whole_group(const uint8_t* const* codes, const uint8_t* const* block_scales,
                      int64_t first, uint8_t* group) {
  static_assert(kNvfp4GroupBlocks == 4);
  static const std::array<uint8_t, 256> kE5m3 = e5m3_codes();
  uint8_t* const group_scales = group + 512;
  bool zero = false;
  for (int r = 0; r < kPanelRows; ++r) {
    for (int b = 0; b < 4; ++b) {
      const uint8_t scale = block_scales[r][first + b];
      zero = zero || scale == 0;
      group_scales[16 * b + r] = kE5m3[scale];
    }
  }
  if (zero) return false;
  for (int r = 0; r < kPanelRows; r += 4) {
    for (int pair = 0; pair < 2; ++pair) {  // of blocks: words 0 and 1, 2 and 3 are their halves
      const auto row = [&](int i) {
        Words words;
        std::memcpy(&words, codes[r + i] + 8 * first + 16 * pair, sizeof(words));
        return words;
      };
      const Words low01 = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5);
      const Words low23 = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
      const Words high01 = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7);
      const Words high23 = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
      uint8_t* const unit = group + 256 * pair + 4 * r;
      const auto store = [&](int offset, Words words) {
        std::memcpy(unit + offset, &words, sizeof(words));
      };
      store(0, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
      store(64, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
      store(128, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
      store(192, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
    }
  }
  return true;
}

// One panel from 16 source rows; a negative row is padding.
void pack_panel(const HostLinear& source, const int64_t* rows, uint8_t* out, float* scales) {
  const int64_t cols = source.cols;
  const auto pointers = [&]<typename T>(const T* data, int64_t stride, const T** result) {
    for (int r = 0; r < kPanelRows; ++r) {
      result[r] = rows[r] < 0 ? nullptr : data + rows[r] * stride;
    }
  };
  switch (source.format) {
    case LinearFormat::kF32: {
      const uint32_t* panel[kPanelRows];
      pointers(static_cast<const uint32_t*>(source.data), cols, panel);
      transpose_panel(panel, cols, reinterpret_cast<uint32_t*>(out));
      return;
    }
    case LinearFormat::kBf16: {
      const uint16_t* panel[kPanelRows];
      pointers(static_cast<const uint16_t*>(source.data), cols, panel);
      transpose_panel(panel, cols, reinterpret_cast<uint16_t*>(out));
      return;
    }
    case LinearFormat::kFp8Block: {
      const uint8_t* panel[kPanelRows];
      pointers(static_cast<const uint8_t*>(source.data), cols, panel);
      transpose_panel(panel, cols, out);
      const int64_t blocks = slices_of(cols);
      const int64_t block_row = rows[0] < 0 ? 0 : rows[0] / kFp8BlockSize;
      std::memcpy(scales, static_cast<const float*>(source.scales) + block_row * blocks,
                  static_cast<size_t>(blocks) * sizeof(float));
      return;
    }
    case LinearFormat::kNvfp4: {
      const uint8_t* codes[kPanelRows];
      const uint8_t* block_scales[kPanelRows];
      pointers(static_cast<const uint8_t*>(source.data), cols / 2, codes);
      pointers(static_cast<const uint8_t*>(source.scales), cols / kNvfp4BlockSize, block_scales);
      const int64_t blocks = cols / kNvfp4BlockSize;
      const bool full = std::find(rows, rows + kPanelRows, -1) == rows + kPanelRows;
      for (int64_t first = 0; first < blocks; first += kNvfp4GroupBlocks) {
        const int64_t in_group = std::min<int64_t>(kNvfp4GroupBlocks, blocks - first);
        uint8_t* const group = out + first * kNvfp4UnitBytes;
        const bool packed = full && in_group == kNvfp4GroupBlocks &&
                            pack_whole_group(codes, block_scales, first, group);
        if (!packed) pack_group(codes, block_scales, first, in_group, group);
      }
      return;
    }
  }
}

LinearWeight packed_weight(const HostLinear& source, ActivationFormat activation, int64_t rows,
                           void* destination) {
  const PackedSize size = packed_size(source.format, panels_of(rows), source.cols);
  LinearWeight weight;
  weight.format = source.format;
  weight.activation = activation;
  weight.rows = rows;
  weight.cols = source.cols;
  weight.data = destination;
  if (source.format == LinearFormat::kFp8Block) {
    weight.scales = static_cast<std::byte*>(destination) + size.scales_offset;
  }
  weight.global_scale = source.global_scale;
  weight.input_scale = source.input_scale;
  return weight;
}

// Packs panel p of a matrix of `panels` panels.
void pack_into(const HostLinear& source, int64_t panels, const int64_t* rows, int64_t p,
               void* destination) {
  auto* const bytes = static_cast<uint8_t*>(destination);
  const PackedSize size = packed_size(source.format, panels, source.cols);
  float* const scales =
      reinterpret_cast<float*>(bytes + size.scales_offset) + p * slices_of(source.cols);
  pack_panel(source, rows, bytes + p * panel_bytes(source.format, source.cols), scales);
}

// The source's values as binary32, rows after each other.
std::vector<float> dequantized(const HostLinear& source) {
  LinearWeight plain;
  plain.format = source.format;
  plain.rows = source.rows;
  plain.cols = source.cols;
  plain.data = source.data;
  plain.scales = source.scales;
  plain.global_scale = source.global_scale;
  std::vector<float> values(static_cast<size_t>(source.rows * source.cols));
  for (int64_t r = 0; r < source.rows; ++r) {
    dequantize_row(plain, r, values.data() + r * source.cols);
  }
  return values;
}

// kv_b_proj keeps its format where heads fall on whole panels (they do in every published model);
// otherwise a panel could need two FP8 scales, and the matrix becomes F32.
LinearFormat mla_up_format(LinearFormat format, const MlaShape& shape) {
  const bool whole_panels =
      shape.qk_nope_head_dim % kPanelRows == 0 && shape.v_head_dim % kPanelRows == 0;
  if (format == LinearFormat::kFp8Block && !whole_panels) return LinearFormat::kF32;
  return format;
}

// W_UK^T is BF16 where the source is, else F32: quantized blocks don't run along its columns.
LinearFormat mla_trans_format(LinearFormat format) {
  return format == LinearFormat::kBf16 ? LinearFormat::kBf16 : LinearFormat::kF32;
}

}  // namespace

size_t CpuKernels::packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const {
  return static_cast<size_t>(packed_size(format, panels_of(rows), cols).bytes);
}

Result<LinearWeight> CpuKernels::pack(const HostLinear& source, ActivationFormat activation,
                                      void* destination) const {
  NIBBLE_CHECK(source.format != LinearFormat::kNvfp4 || source.cols % kNvfp4BlockSize == 0);
  NIBBLE_TRY(check_source_codes(source));
  const LinearWeight weight = packed_weight(source, activation, source.rows, destination);
  for (int64_t p = 0; p < panels_of(source.rows); ++p) {
    int64_t rows[kPanelRows];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t row = p * kPanelRows + r;
      rows[r] = row < source.rows ? row : -1;
    }
    pack_into(source, panels_of(source.rows), rows, p, destination);
  }
  return weight;
}

size_t CpuKernels::packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const {
  const MlaPanels panels(shape);
  const PackedSize up = packed_size(mla_up_format(format, shape), shape.num_heads * panels.head(),
                                    shape.kv_lora_rank);
  const PackedSize trans = packed_size(mla_trans_format(format), shape.num_heads * panels.latent,
                                       shape.qk_nope_head_dim);
  return static_cast<size_t>(ceil_div(up.bytes, 64) * 64 + trans.bytes);
}

Result<MlaUpWeight> CpuKernels::pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                            void* destination) const {
  const int64_t nope = shape.qk_nope_head_dim;
  const int64_t head_rows = nope + shape.v_head_dim;
  NIBBLE_CHECK(kv_b_proj.rows == shape.num_heads * head_rows);
  NIBBLE_CHECK(kv_b_proj.cols == shape.kv_lora_rank);
  NIBBLE_TRY(check_source_codes(kv_b_proj));
  placement_.spread(destination, packed_mla_up_bytes(kv_b_proj.format, shape));

  std::vector<float> values;
  HostLinear as_float = kv_b_proj;
  if (kv_b_proj.format != LinearFormat::kBf16 && kv_b_proj.format != LinearFormat::kF32) {
    values = dequantized(kv_b_proj);
    as_float.format = LinearFormat::kF32;
    as_float.data = values.data();
    as_float.scales = nullptr;
    as_float.global_scale = 1;
  }
  const HostLinear& up_source =
      mla_up_format(kv_b_proj.format, shape) == kv_b_proj.format ? kv_b_proj : as_float;

  const MlaPanels panels(shape);
  MlaUpWeight result;
  result.kv_b_proj = packed_weight(up_source, ActivationFormat::kUnquantized,
                                   shape.num_heads * panels.head() * kPanelRows, destination);
  for (int64_t p = 0; p < shape.num_heads * panels.head(); ++p) {
    const int64_t head = p / panels.head();
    const int64_t part = p % panels.head();
    int64_t rows[kPanelRows];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      if (part < panels.nope) {
        const int64_t i = part * kPanelRows + r;
        rows[r] = i < nope ? head * head_rows + i : -1;
      } else {
        const int64_t i = (part - panels.nope) * kPanelRows + r;
        rows[r] = i < shape.v_head_dim ? head * head_rows + nope + i : -1;
      }
    }
    pack_into(up_source, shape.num_heads * panels.head(), rows, p, destination);
  }

  const PackedSize up_size =
      packed_size(up_source.format, shape.num_heads * panels.head(), shape.kv_lora_rank);
  auto* const trans = static_cast<uint8_t*>(destination) + ceil_div(up_size.bytes, 64) * 64;
  const int64_t element = as_float.format == LinearFormat::kBf16 ? 2 : 4;
  result.kv_b_k_trans.format = as_float.format;
  result.kv_b_k_trans.rows = shape.num_heads * panels.latent * kPanelRows;
  result.kv_b_k_trans.cols = nope;
  result.kv_b_k_trans.data = trans;
  // Panel p of W_UK^T holds 16 neighbouring columns of W_UK: plain pieces of its rows.
  const auto* const source = static_cast<const uint8_t*>(as_float.data);
  for (int64_t p = 0; p < shape.num_heads * panels.latent; ++p) {
    const int64_t head = p / panels.latent;
    const int64_t col = p % panels.latent * kPanelRows;
    const int64_t count = std::min<int64_t>(kPanelRows, shape.kv_lora_rank - col);
    for (int64_t d = 0; d < nope; ++d) {
      uint8_t* const out = trans + (p * nope + d) * kPanelRows * element;
      std::memset(out, 0, static_cast<size_t>(kPanelRows * element));
      std::memcpy(out, source + ((head * head_rows + d) * shape.kv_lora_rank + col) * element,
                  static_cast<size_t>(count * element));
    }
  }
  return result;
}

}  // namespace nibble
