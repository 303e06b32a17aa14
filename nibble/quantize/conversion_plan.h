// What a conversion will write, decided from the source's headers alone, so that sizes are known
// and refusals come before the first byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/quantize/scheme.h"

namespace nibble {

enum class JobKind {
  kCopy,       // the tensor as it is
  kToBf16,     // an FP8 matrix that the scheme leaves out
  kQuantize,   // a group of matrices that become NVFP4 together
  kUnitScale,  // a scalar 1 that the source does not have: k_scale, v_scale
};

// The smallest piece of work: what one thread does in one go. Its outputs lie in one shard.
struct ConversionJob {
  JobKind kind = JobKind::kCopy;
  std::string tensor;   // kCopy: its name
  LinearGroup linears;  // kToBf16: one; kQuantize: those that share a global scale
  std::vector<TensorInfo> outputs;
  uint64_t source_bytes = 0;  // companions included
  uint64_t output_bytes = 0;
  size_t shard = 0;
  int layer = -1;  // of its outputs, as layer_of has it
};

struct ConversionPlan {
  std::vector<ConversionJob> jobs;  // in the order of the model, hence of the shards
  std::vector<std::string> shard_names;
  uint64_t source_bytes = 0;
  uint64_t output_bytes = 0;
  uint64_t quantized_source_bytes = 0;  // of kQuantize jobs, scales included
  uint64_t quantized_output_bytes = 0;
  int64_t num_quantized_linears = 0;
  int64_t num_source_tensors = 0;
  int64_t num_output_tensors = 0;
  bool source_is_fp8 = false;
};

// A shard is closed when the next job would take its tensors past `shard_bytes`; one larger job has
// a shard of its own. Errors: kUnsupported for a source that is NVFP4 already or has matrices of
// another type than FP8, BF16 or F32; kNotFound for a matrix that config.json implies and the
// source lacks; kCorrupt for a shape other than config.json's, FP8 without weight_scale_inv or the
// reverse, and MLP matrices that config.json knows nothing of; kInvalidArgument where the columns
// are no multiple of
// 16; those of quantized_groups. Each names the tensor.
//
// With `kv_scales` each layer gets self_attn.k_proj.k_scale and v_proj.v_scale, as the first
// published checkpoint has them; they are 1, the only value that deployments take.
Result<ConversionPlan> plan_conversion(const CheckpointSource& source, const ModelConfig& config,
                                       const QuantizeRecipe& recipe, uint64_t shard_bytes,
                                       bool kv_scales = false);

// "model.layers.2.x" before "model.layers.10.x": runs of digits compare as numbers.
bool natural_less(std::string_view a, std::string_view b);

// The layer of a tensor or module name ("model.layers.3.mlp" -> 3), or -1.
int layer_of(std::string_view name);

}  // namespace nibble
