// The tensors of one linear layer, found by its module path and checked: what format it is in,
// its weight and its scales.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"
#include "nibble/tensor/tensor_view.h"

namespace nibble {

enum class WeightFormat {
  kF32,       // weight F32 [rows, cols]
  kBf16,      // weight BF16 [rows, cols]
  kFp8Block,  // weight F8_E4M3 [rows, cols], scales F32 [ceil(rows / 128), ceil(cols / 128)]
  kNvfp4      // weight U8 [rows, cols / 2], scales F8_E4M3 [rows, cols / 16], global_scale
};

// "F32", "BF16", "FP8 128x128", "NVFP4".
std::string_view weight_format_name(WeightFormat format);

// Views are valid as long as the source, or until release_linear for sources that make their data
// on demand.
struct LinearTensors {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;                  // out_features
  int64_t cols = 0;                  // in_features, logical: NVFP4 packs two into a byte
  TensorView weight;                 // as the enumerators above say
  TensorView scales;                 // kFp8Block, kNvfp4; otherwise without bytes
  float global_scale = 1;            // kNvfp4: weight_scale_2
  std::optional<float> input_scale;  // kNvfp4: absent means weight-only (W4A16)
};

// The format of module's weight from dtypes and names alone; no data is read. A weight is NVFP4 iff
// it is U8 and `module`.weight_scale exists (nvfp4.md section 5). Errors: kNotFound without
// `module`.weight; kUnsupported naming the dtype, the layout (per-tensor FP8, compressed-tensors)
// or a pre_quant_scale, which are not read.
Result<WeightFormat> find_weight_format(const CheckpointSource& source, std::string_view module);

// Shapes and dtypes of the weight and its companions against the logical [rows, cols]; no data is
// read. Errors: those of find_weight_format, kCorrupt naming the tensor, what it has and what was
// expected.
Result<WeightFormat> check_linear_shapes(const CheckpointSource& source, std::string_view module,
                                         int64_t expected_rows, int64_t expected_cols);

// Reads and checks `module`.weight and its companions against the logical [expected_rows,
// expected_cols]. Scalars may have the shape [] or [1] and the dtype F32 or BF16.
// Every scale is looked at, and every FP8 weight code. Errors: those of check_linear_shapes, and
// kCorrupt naming the tensor and the place for: a block scale with the sign bit or 0x7F (NaN);
// weight_scale_2, input_scale or weight_scale_inv that is NaN, infinite, zero or negative; an FP8
// weight code 0x7F or 0xFF (NaN).
Result<LinearTensors> read_linear(const CheckpointSource& source, std::string_view module,
                                  int64_t expected_rows, int64_t expected_cols);

// `module`.input_scale, or nothing where there is none. Errors: kCorrupt naming it when it is not
// one positive finite number of F32 or BF16.
Result<std::optional<float>> read_input_scale(const CheckpointSource& source,
                                              std::string_view module);

// A rectangle of a matrix. Block scales may not be cut: NVFP4 on multiples of 16 columns, FP8 on
// multiples of 128 rows and columns or at the matrix's end (linear_slice_grain).
struct LinearSlice {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_col = 0;
  int64_t cols = 0;
};

// Rows and columns that share a scale, so that a slice begins and ends on their multiples.
struct LinearGrain {
  int64_t rows = 1;
  int64_t cols = 1;
};
LinearGrain linear_slice_grain(WeightFormat format);

// A slice's tensors; views of whole rows point into the source, others into `storage`.
struct LinearSliceTensors {
  LinearTensors tensors;  // rows and cols are the slice's
  std::vector<std::byte> storage[2];
};

// read_linear of a part: shapes are checked against the whole [expected_rows, expected_cols], bytes
// are read and checked for the slice alone. Errors: those of read_linear; kInvalidArgument for a
// slice that leaves the matrix or cuts a scale's block.
Result<LinearSliceTensors> read_linear_slice(const CheckpointSource& source,
                                             std::string_view module, int64_t expected_rows,
                                             int64_t expected_cols, const LinearSlice& slice);

// read_linear without a look at the weight's codes, for a reader that goes through a matrix larger
// than memory piece by piece and finds NaN codes itself. Scales are checked.
Result<LinearTensors> map_linear(const CheckpointSource& source, std::string_view module,
                                 int64_t expected_rows, int64_t expected_cols);

// source.release of the weight and all companions.
void release_linear(const CheckpointSource& source, std::string_view module);

// Whether any weight is NVFP4 as find_weight_format says; load_quant_config wants to know.
bool has_nvfp4_weights(const CheckpointSource& source);

}  // namespace nibble
