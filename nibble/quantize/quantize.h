// nibble quantize: an FP8 or BF16 checkpoint in, an NVFP4 checkpoint in Model Optimizer's layout
// out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/quantize/scheme.h"

namespace nibble {

struct QuantizeOptions {
  QuantizeScheme scheme = QuantizeScheme::kNvfp4V2;
  int threads = 0;                       // 0: every processor this process may use
  uint64_t shard_bytes = 5'000'000'000;  // tensor bytes of one output file, at least 1
  bool overwrite = false;                // replace an existing checkpoint folder
  bool dry_run = false;                  // plan and check, write nothing
  bool show_progress = false;            // on stderr
};

struct QuantizeReport {
  QuantizeScheme scheme = QuantizeScheme::kNvfp4V2;
  bool dry_run = false;
  std::string source_format;  // "FP8" or "BF16"
  int64_t num_source_tensors = 0;
  int64_t num_output_tensors = 0;
  int64_t num_quantized_linears = 0;
  int64_t num_shards = 0;
  // Tensor bytes; those of the quantized linears count their scales on both sides.
  uint64_t source_bytes = 0;
  uint64_t output_bytes = 0;
  uint64_t quantized_source_bytes = 0;
  uint64_t quantized_output_bytes = 0;
  uint64_t needed_disk_bytes = 0;  // an upper bound: headers and small files included
  uint64_t free_disk_bytes = 0;    // before the conversion
  int threads = 0;
  double seconds = 0;  // from start to the final rename; 0 for a dry run
  std::vector<std::string> warnings;

  double ratio() const;            // source_bytes / output_bytes
  double quantized_ratio() const;  // the same over the quantized linears
  double gb_per_second() const;    // source bytes (10^9) per second; 0 for a dry run
};

// Converts the checkpoint folder `in` to the folder `out`, without calibration data: block scales
// and weight_scale_2 from the weights (mode max), input_scale 1. FP8 -> BF16 (rounded) -> NVFP4;
// what the scheme leaves out is written as BF16, other tensors as they are. `out` appears only when
// it is complete. Works tensor by tensor: each thread holds the output of one matrix.
//
// Errors: kInvalidArgument for an existing `out` without `overwrite`, `out` and `in` inside each
// other, bad options; kUnavailable when the disk has too little room or fills up, naming the file;
// kCancelled after an interrupt; those of SafetensorsSource::open, load_config, plan_conversion and
// of the conversion, naming the tensor. After an error nothing is left behind.
Result<QuantizeReport> quantize_checkpoint(const std::filesystem::path& in,
                                           const std::filesystem::path& out,
                                           const QuantizeOptions& options);

}  // namespace nibble
