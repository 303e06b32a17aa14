// nibble quantize: an FP8 or BF16 checkpoint in, an NVFP4 checkpoint in Model Optimizer's layout
// out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/quantize/scheme.h"
#include "nibble/quantize/weight_algorithm.h"

namespace nibble {

struct QuantizeOptions {
  QuantizeRecipe recipe;
  WeightAlgorithm algorithm;
  int threads = 0;                       // 0: every processor this process may use
  uint64_t shard_bytes = 5'000'000'000;  // tensor bytes of one output file, at least 1
  uint64_t max_memory = 0;               // bytes to work with; 0: what is free
  bool fp8_kv_cache = true;              // what the configuration asks runtimes for
  bool kv_scales = false;                // write k_scale and v_scale, which are 1
  bool resume = true;                    // go on with what an interrupted run has left
  bool overwrite = false;                // replace an existing checkpoint folder
  bool dry_run = false;                  // plan and check, write nothing
  bool show_progress = false;            // on stderr

  // Calibration data; empty: none, input_scale is 1. Each sample is a sequence of token ids.
  std::vector<std::vector<int32_t>> samples;
  std::string samples_name;      // for the model card: the file's name
  std::string backend = "auto";  // that runs the model for calibration

  // Calibrate each layer with what the quantized layers before it give.
  bool feed_quantized = false;
};

struct QuantizeReport {
  QuantizeRecipe recipe;
  WeightAlgorithm algorithm;
  bool dry_run = false;
  bool resumed = false;         // an interrupted run was continued
  uint64_t reused_bytes = 0;    // source bytes whose output was there already
  double expected_seconds = 0;  // dry run: from a trial of the algorithm on this machine
  int64_t num_calibration_tokens = 0;
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

// Converts the checkpoint folder `in` to the folder `out`: FP8 -> BF16 (rounded) -> NVFP4; what the
// recipe leaves out is written as BF16, other tensors as they are. weight_scale_2 comes from the
// weights; input_scale from the samples, or is 1 (block scales of activations are dynamic anyway).
// Beside the tensors go the configuration, what accompanies the model, a model card and SHA256SUMS.
//
// Without samples each thread holds some rows of one matrix. With samples one layer of the model is
// held at a time, and its inputs lie on the disk. `out` appears when it is complete; until then
// OUT.partial holds what is done, and the next call with the same source and options goes on from
// there, whatever ended the first one. The bytes do not depend on threads, memory or interruptions.
//
// Errors: kInvalidArgument for an existing `out` without `overwrite`, `out` and `in` inside each
// other, bad options, an algorithm that needs samples without any, a partial folder of another
// source or other options, too little max_memory; kUnavailable when the disk has too little room or
// fills up, naming the file; kCancelled after an interrupt; those of SafetensorsSource::open,
// load_config, plan_conversion and of the conversion, naming the tensor. OUT.partial stays after
// kCancelled, kUnavailable and kOutOfMemory, which another try may overcome.
Result<QuantizeReport> quantize_checkpoint(const std::filesystem::path& in,
                                           const std::filesystem::path& out,
                                           const QuantizeOptions& options);

}  // namespace nibble
