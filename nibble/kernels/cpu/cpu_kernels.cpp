#include "nibble/kernels/cpu/cpu_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"

namespace nibble {
namespace {

const PanelIsa* panel_isa(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return &kPanelIsaAvx512;
  if (isa == Isa::kAvx2) return &kPanelIsaAvx2;
#endif
  NIBBLE_CHECK(isa == Isa::kPortable);
  return &kPanelIsaPortable;
}

const BlockIsa* block_isa(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return &kBlockIsaAmx;
  if (isa == Isa::kAvx512Vnni) return &kBlockIsaAvx512Vnni;
  if (isa == Isa::kAvx512) return &kBlockIsaAvx512;
  if (isa == Isa::kAvx2) return &kBlockIsaAvx2;
#endif
  NIBBLE_CHECK(isa == Isa::kPortable);
  return &kBlockIsaPortable;
}

const TileIsa* tile_isa(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return &kTileIsaAmx;
#endif
  return isa == Isa::kAmx ? &kTileIsaPortable : nullptr;
}

// "cpu amx", "cpu amx, exact"; levels without tiles are exact anyway.
std::string backend_name(Isa isa, const TileIsa* tiles, CpuActivations activations) {
  const bool exact =
      activations == CpuActivations::kExact && (tiles != nullptr || tile_isa(isa) != nullptr);
  return fmt::format("cpu {}{}{}", isa_name(isa), tiles != nullptr ? ", tiles given" : "",
                     exact ? ", exact" : "");
}

}  // namespace

CpuKernels::CpuKernels(Isa isa, int threads, int64_t moe_scratch_floats, CpuActivations activations,
                       const TileIsa* tiles, const Numa& numa)
    : isa_(panel_isa(isa)),
      blocks_(block_isa(isa)),
      tiles_(tiles != nullptr ? tiles : tile_isa(isa)),
      activation_bits_(activations),
      moe_scratch_floats_(moe_scratch_floats),
      name_(backend_name(isa, tiles, activations)),
      device_(make_host_device()),
      pool_(threads, Placement::kPinned, numa.nodes),
      placement_(pool_, *numa.memory, numa.most_mappings),
      thread_scratch_(static_cast<size_t>(threads)),
      thread_bases_(static_cast<size_t>(threads)) {}

CpuKernels::~CpuKernels() = default;

CpuKernels::Numa CpuKernels::machine_numa() {
  return {numa_nodes(allowed_processors()), &system_numa_memory()};
}

void CpuKernels::multiply_panels(const PanelMatrix& matrix, int64_t first_panel, int64_t panels,
                                 const float* a, int64_t tokens, float* c, int64_t c_row,
                                 int64_t c_panel, float* weights) const {
  NIBBLE_CHECK(panels <= kGroupPanels);
  if (matrix.rows == RowFormat::kBf16 || matrix.rows == RowFormat::kBf16Split) {
    const PanelPart part = {matrix, first_panel, panels, c};
    tiles_->multiply(&part, 1, a, tokens, matrix.rows == RowFormat::kBf16 ? 1 : 2, c_row, c_panel,
                     weights);
    return;
  }
  if (matrix.rows != RowFormat::kFloat) {
    const BlockProducts& products =
        matrix.rows == RowFormat::kInt16 ? blocks_->int16 : blocks_->int8;
    if (tokens <= products.fused_tokens) {
      products.multiply_fused(&matrix, first_panel, panels, a, tokens, c, c_row, c_panel);
      return;
    }
    const int64_t row_floats = row_slice_floats(matrix.rows);
    int64_t slice = 0;
    for (int64_t left = matrix.cols; left > 0; left -= kSliceCols, ++slice) {
      products.expand(&matrix, first_panel, panels, slice, weights);
      const auto blocks = static_cast<int>((left < kSliceCols ? left : kSliceCols) / 16);
      products.multiply(a + slice * tokens * row_floats, tokens, weights, panels, blocks, c, c_row,
                        c_panel, slice > 0);
    }
    return;
  }
  if (tokens <= isa_->fused_tokens) {
    isa_->multiply_fused(&matrix, first_panel, panels, a, tokens, c, c_row, c_panel);
    return;
  }
  int64_t slice = 0;
  for (int64_t left = matrix.cols; left > 0; left -= kSliceCols, ++slice) {
    isa_->dequantize(&matrix, first_panel, panels, slice, weights);
    const auto depth = static_cast<int>(left < kSliceCols ? left : kSliceCols);
    isa_->multiply(a + slice * tokens * kSliceCols, tokens, weights, panels, depth, c, c_row,
                   c_panel, slice > 0);
  }
}

void CpuKernels::multiply_parts(std::span<const PanelPart> parts, const float* a, int64_t tokens,
                                int64_t c_row, int64_t c_panel, float* weights) const {
  const RowFormat rows = parts[0].matrix.rows;
  if (rows == RowFormat::kBf16 || rows == RowFormat::kBf16Split) {
    tiles_->multiply(parts.data(), static_cast<int64_t>(parts.size()), a, tokens,
                     rows == RowFormat::kBf16 ? 1 : 2, c_row, c_panel, weights);
    return;
  }
  for (const PanelPart& part : parts) {
    multiply_panels(part.matrix, part.first_panel, part.panels, a, tokens, part.c, c_row, c_panel,
                    weights);
  }
}

int64_t CpuKernels::weight_floats(int64_t tokens, int64_t groups) const {
  if (tiles_ == nullptr) return kGroupFloats;
  return std::max(kGroupFloats, tile_scratch_floats(tokens, 2, groups * kGroupPanels));
}

int64_t CpuKernels::groups_of_task(RowFormat rows, int64_t groups, int64_t tokens,
                                   int64_t matrices) const {
  if (rows != RowFormat::kBf16 && rows != RowFormat::kBf16Split) return 1;
  // Few rows pass once over the weights, whatever the task.
  const int64_t tile_rows = (rows == RowFormat::kBf16 ? 1 : 2) * tokens;
  const int64_t most =
      tile_rows <= 32 ? 2
                      : std::clamp<int64_t>(kTileResults / ceil_div(tile_rows, 16) / kGroupPanels,
                                            2, kTaskParts);
  return std::max<int64_t>(1,
                           std::min(most / matrices, groups / (int64_t{2} * pool_.num_threads())));
}

RowFormat CpuKernels::row_format(const LinearWeight& weight) const {
  if (weight.format == LinearFormat::kF32) return RowFormat::kFloat;
  if (weight.activation == ActivationFormat::kNvfp4) return RowFormat::kInt8;
  if (bf16()) return RowFormat::kBf16;
  if (weight.format != LinearFormat::kNvfp4) return RowFormat::kFloat;
  if (tiles_ != nullptr) return RowFormat::kBf16Split;
  return activation_bits_ == CpuActivations::kInt8 ? RowFormat::kInt8 : RowFormat::kInt16;
}

void CpuKernels::copy_slice(const float* x, int64_t count, const LinearWeight& weight,
                            RowFormat format, int64_t row, int64_t rows, float* slice) const {
  float* const out = slice + row * row_slice_floats(format);
  switch (format) {
    case RowFormat::kFloat:
      if (x != out) std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
      return;
    case RowFormat::kInt16:
      return blocks_->quantize_int16(x, count, out);
    case RowFormat::kInt8:
      if (weight.activation == ActivationFormat::kNvfp4) {
        return quantize_nvfp4_row(*blocks_, x, count, weight.input_scale, out);
      }
      return blocks_->quantize_int8(x, count, out);
    case RowFormat::kBf16:
      return tiles_->quantize(x, count, 1, row, rows, slice);
    case RowFormat::kBf16Split:
      return tiles_->quantize(x, count, 2, row, rows, slice);
  }
}

void CpuKernels::copy_to_slices(const float* const* x, int64_t count, const LinearWeight& weight,
                                RowFormat format, int64_t row, int64_t rows, float* slices) const {
  const int64_t slice_floats = rows * row_slice_floats(format);
  for (int64_t first = 0; first < weight.cols; first += kSliceCols, slices += slice_floats) {
    const int64_t cols = std::min<int64_t>(kSliceCols, weight.cols - first);
    for (int64_t i = 0; i < count; ++i) {
      copy_slice(x[i] + first, cols, weight, format, row + i, rows, slices);
    }
  }
}

void CpuKernels::reserve_thread_scratch(int64_t count) {
  for (size_t i = 0; i < thread_scratch_.size(); ++i) {
    thread_bases_[i] = thread_scratch_[i].reserve(*device_, count);
  }
}

}  // namespace nibble
