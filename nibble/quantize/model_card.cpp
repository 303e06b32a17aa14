#include "nibble/quantize/model_card.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "nibble/base/text.h"

namespace nibble {
namespace {

std::string calibration_text(const QuantizeOptions& options) {
  if (options.samples.empty()) {
    return "none: weight scales come from the weights, `input_scale` is 1 and the block scales of "
           "activations are dynamic";
  }
  XXH3_state_t* const state = XXH3_createState();
  XXH3_64bits_reset(state);
  size_t tokens = 0;
  for (const auto& sample : options.samples) {
    const uint64_t size = sample.size();
    XXH3_64bits_update(state, &size, sizeof size);
    XXH3_64bits_update(state, sample.data(), sample.size() * sizeof(int32_t));
    tokens += sample.size();
  }
  const uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return fmt::format(
      "{}: {} samples, {} tokens, XXH3 of the token ids {:016x}; {} layers fed forward",
      options.samples_name, format_count(options.samples.size()), format_count(tokens), hash,
      options.feed_quantized ? "quantized" : "original");
}

}  // namespace

std::string model_card(std::string_view source_name, const ConversionPlan& plan,
                       const QuantizeOptions& options, std::string_view version) {
  return fmt::format(
      "# {0} in NVFP4\n\n"
      "Converted from `{0}` ({1}) by nibble {2}.\n\n"
      "| | |\n|---|---|\n"
      "| layout | NVIDIA Model Optimizer: `weight`, `weight_scale`, `weight_scale_2`, "
      "`input_scale` |\n"
      "| scheme | {3} |\n"
      "| algorithm | {4} |\n"
      "| calibration | {5} |\n"
      "| KV cache | {6} |\n"
      "| quantized | {7} linear layers, {8} from {9} |\n"
      "| all tensors | {10}, {11} in {12} files; the source has {13} |\n\n"
      "What is not quantized is BF16 (`hf_quant_config.json` lists it under `exclude_modules`; the "
      "router "
      "and norms are never quantized). `SHA256SUMS` lists every file: `sha256sum -c SHA256SUMS`.\n",
      source_name, plan.source_is_fp8 ? "FP8, 128x128 blocks, rounded to BF16 first" : "BF16",
      version, options.recipe.name(), options.algorithm.name(), calibration_text(options),
      options.fp8_kv_cache ? (options.kv_scales ? "FP8, `k_scale` and `v_scale` 1" : "FP8, scale 1")
                           : "not quantized",
      format_count(static_cast<uint64_t>(plan.num_quantized_linears)),
      format_bytes(plan.quantized_output_bytes), format_bytes(plan.quantized_source_bytes),
      format_bytes(plan.output_bytes), format_count(static_cast<uint64_t>(plan.num_output_tensors)),
      plan.shard_names.size(), format_bytes(plan.source_bytes));
}

}  // namespace nibble
