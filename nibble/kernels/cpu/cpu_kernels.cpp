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
  if (isa == Isa::kAvx512Vnni) return &kBlockIsaAvx512Vnni;
  if (isa == Isa::kAvx512) return &kBlockIsaAvx512;
  if (isa == Isa::kAvx2) return &kBlockIsaAvx2;
#endif
  NIBBLE_CHECK(isa == Isa::kPortable);
  return &kBlockIsaPortable;
}

}  // namespace

CpuKernels::CpuKernels(Isa isa, int threads, int64_t moe_scratch_floats, bool int8_activations)
    : isa_(panel_isa(isa)),
      blocks_(block_isa(isa)),
      int8_activations_(int8_activations),
      moe_scratch_floats_(moe_scratch_floats),
      name_(fmt::format("cpu {}", isa_name(isa))),
      device_(make_host_device()),
      pool_(threads, Placement::kPinned),
      thread_scratch_(static_cast<size_t>(threads)),
      thread_bases_(static_cast<size_t>(threads)) {}

CpuKernels::~CpuKernels() = default;

void CpuKernels::multiply_panels(const PanelMatrix& matrix, int64_t first_panel, int64_t panels,
                                 const float* a, int64_t tokens, float* c, int64_t c_row,
                                 int64_t c_panel, float* weights) const {
  NIBBLE_CHECK(panels <= kGroupPanels);
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

RowFormat CpuKernels::row_format(const LinearWeight& weight) const {
  if (weight.format != LinearFormat::kNvfp4) return RowFormat::kFloat;
  const bool int8 = int8_activations_ || weight.activation == ActivationFormat::kNvfp4;
  return int8 ? RowFormat::kInt8 : RowFormat::kInt16;
}

void CpuKernels::copy_slice(const float* x, int64_t count, const LinearWeight& weight,
                            float* out) const {
  switch (row_format(weight)) {
    case RowFormat::kFloat:
      if (x != out) std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
      return;
    case RowFormat::kInt16:
      return blocks_->quantize_int16(x, count, out);
    case RowFormat::kInt8:
      if (weight.activation == ActivationFormat::kNvfp4) {
        return quantize_nvfp4_row(x, count, weight.input_scale, out);
      }
      return blocks_->quantize_int8(x, count, out);
  }
}

void CpuKernels::copy_to_slices(const float* x, const LinearWeight& weight, int64_t row,
                                int64_t rows, float* slices) const {
  const int64_t row_floats = row_slice_floats(row_format(weight));
  float* out = slices + row * row_floats;
  for (int64_t left = weight.cols; left > 0; left -= kSliceCols) {
    copy_slice(x, std::min<int64_t>(left, kSliceCols), weight, out);
    x += kSliceCols;
    out += rows * row_floats;
  }
}

void CpuKernels::reserve_thread_scratch(int64_t count) {
  for (size_t i = 0; i < thread_scratch_.size(); ++i) {
    thread_bases_[i] = thread_scratch_[i].reserve(*device_, count);
  }
}

}  // namespace nibble
