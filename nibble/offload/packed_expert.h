// One routed expert from a checkpoint into a record of the packed layout, in memory.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/kernels/kernels.h"
#include "nibble/offload/expert_format.h"

namespace nibble {

// The layers with routed experts, in order; the MTP layer (num_hidden_layers) is the last where
// `with_mtp` and the model has one.
std::vector<int> moe_layers(const ModelConfig& config, bool with_mtp);

// Bytes of an expert's record, from shapes and dtypes alone. *formats, when not null, gains a bit
// for each LinearFormat that it holds. Errors: those of check_linear_shapes.
Result<uint64_t> expert_record_bytes(const CheckpointSource& source, const ModelConfig& config,
                                     const Kernels& kernels, int layer, int expert,
                                     uint64_t* formats = nullptr);

// The largest input_scale of a layer's experts, for gate_proj and up_proj together and for
// down_proj; 1 where there is none (nvfp4.md section 4). Errors: kCorrupt naming a scalar that is
// not one finite positive number.
struct ExpertInputScales {
  float input = 1;
  float product = 1;
};
Result<ExpertInputScales> expert_input_scales(const CheckpointSource& source,
                                              const ModelConfig& config, int layer);

// Reads the expert's three matrices and packs them into `record`, whose size is what
// expert_record_bytes said and whose address is a multiple of 64: host memory, also for a backend
// that packs on a device. Thread-safe. Errors: those of
// read_linear and Kernels::pack, naming the tensor.
Status pack_expert(const CheckpointSource& source, const ModelConfig& config, Kernels& kernels,
                   int layer, int expert, const ExpertInputScales& scales,
                   std::span<std::byte> record);

}  // namespace nibble
