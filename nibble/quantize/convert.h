// nibble convert: the same weights in another format or layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

enum class ConvertFormat {
  kBf16,               // "bf16": every linear layer in BF16
  kFp8,                // "fp8": DeepSeek's FP8 with 128x128 blocks, as its release
  kCompressedTensors,  // "compressed-tensors": NVFP4 as nvfp4-pack-quantized
  kModelOpt,           // "modelopt": from that layout back to Model Optimizer's
};

// Errors: kInvalidArgument naming the formats.
Result<ConvertFormat> parse_convert_format(std::string_view name);

struct ConvertOptions {
  ConvertFormat format = ConvertFormat::kBf16;
  int threads = 0;                       // 0: every processor this process may use
  uint64_t shard_bytes = 5'000'000'000;  // tensor bytes of one output file, at least 1
  bool overwrite = false;
  bool show_progress = false;
};

struct ConvertReport {
  int64_t num_converted_linears = 0;
  int64_t num_inexact_scales = 0;
  int64_t num_output_tensors = 0;
  uint64_t output_bytes = 0;
  double seconds = 0;
};

// kBf16 and kFp8 take any format that can be run: values are decoded (NVFP4: e2m1 * (e4m3 *
// weight_scale_2)) and rounded once to BF16, and for kFp8 quantized from there, scale = amax / 448.
// kCompressedTensors keeps codes and block scales and writes weight_scale_2 and input_scale as
// their reciprocals, weight_global_scale and input_global_scale, F32 [1]; kModelOpt is the way
// back. Not every binary32 is the reciprocal of one: num_inexact_scales counts those that come back
// one unit in the last place off.
//
// Each thread holds one matrix. `out` appears whole or not at all. Errors: kInvalidArgument for
// places inside each other, an existing `out` without `overwrite`, or nothing to convert; those of
// reading and writing.
Result<ConvertReport> convert_checkpoint(const std::filesystem::path& in,
                                         const std::filesystem::path& out,
                                         const ConvertOptions& options);

}  // namespace nibble
