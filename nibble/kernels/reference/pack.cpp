// The reference keeps the checkpoint's layout: packing is a copy, data first, then scales.
#include <cstring>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

struct Sizes {
  size_t data;
  size_t scales;
  // The scales start on a multiple of 16 bytes.
  size_t scales_offset() const { return (data + 15) / 16 * 16; }
};

Sizes sizes_of(LinearFormat format, int64_t rows, int64_t cols) {
  const auto count = static_cast<size_t>(rows * cols);
  switch (format) {
    case LinearFormat::kF32:
      return {count * 4, 0};
    case LinearFormat::kBf16:
      return {count * 2, 0};
    case LinearFormat::kFp8Block: {
      const int64_t row_blocks = (rows + kFp8BlockSize - 1) / kFp8BlockSize;
      const int64_t col_blocks = (cols + kFp8BlockSize - 1) / kFp8BlockSize;
      return {count, static_cast<size_t>(row_blocks * col_blocks) * 4};
    }
    case LinearFormat::kNvfp4:
      return {count / 2, count / kNvfp4BlockSize};
  }
  return {0, 0};
}

}  // namespace

size_t ReferenceKernels::packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const {
  const Sizes sizes = sizes_of(format, rows, cols);
  return sizes.scales_offset() + sizes.scales;
}

Result<LinearWeight> ReferenceKernels::pack(const HostLinear& source, ActivationFormat activation,
                                            void* destination) const {
  NIBBLE_CHECK(source.format != LinearFormat::kNvfp4 || source.cols % kNvfp4BlockSize == 0);
  const Sizes sizes = sizes_of(source.format, source.rows, source.cols);
  auto* bytes = static_cast<std::byte*>(destination);
  std::memcpy(bytes, source.data, sizes.data);
  if (sizes.scales > 0) std::memcpy(bytes + sizes.scales_offset(), source.scales, sizes.scales);
  return LinearWeight{source.format,
                      activation,
                      source.rows,
                      source.cols,
                      bytes,
                      bytes + sizes.scales_offset(),
                      source.global_scale,
                      source.input_scale};
}

size_t ReferenceKernels::packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const {
  return packed_bytes(format, shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim),
                      shape.kv_lora_rank);
}

Result<MlaUpWeight> ReferenceKernels::pack_mla_up(const HostLinear& kv_b_proj,
                                                  const MlaShape& shape, void* destination) const {
  NIBBLE_CHECK(kv_b_proj.rows == shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim));
  return MlaUpWeight{NIBBLE_TRY(pack(kv_b_proj, ActivationFormat::kUnquantized, destination)), {}};
}

}  // namespace nibble
