#include "nibble/kernels/cpu/cpu_kernels.h"

#include <fmt/format.h>

#include "nibble/base/check.h"

namespace nibble {
namespace {

const PanelIsa* panel_isa(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return &kPanelIsaAvx512;
  if (isa == Isa::kAvx2) return &kPanelIsaAvx2;
#endif
  NIBBLE_CHECK(isa == Isa::kPortable);
  return &kPanelIsaPortable;
}

}  // namespace

CpuKernels::CpuKernels(Isa isa, int threads, int64_t moe_scratch_floats)
    : isa_(panel_isa(isa)),
      moe_scratch_floats_(moe_scratch_floats),
      name_(fmt::format("cpu {}", isa_name(isa))),
      device_(make_host_device()),
      pool_(threads),
      thread_scratch_(static_cast<size_t>(threads)),
      thread_bases_(static_cast<size_t>(threads)) {}

CpuKernels::~CpuKernels() = default;

void CpuKernels::multiply_panels(const PanelMatrix& matrix, int64_t first_panel, int64_t panels,
                                 const float* a, int64_t tokens, float* c, int64_t c_row,
                                 int64_t c_panel, float* weights) const {
  NIBBLE_CHECK(panels <= kGroupPanels);
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

void CpuKernels::reserve_thread_scratch(int64_t count) {
  for (size_t i = 0; i < thread_scratch_.size(); ++i) {
    thread_bases_[i] = thread_scratch_[i].reserve(*device_, count);
  }
}

}  // namespace nibble
