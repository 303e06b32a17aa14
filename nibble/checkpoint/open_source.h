// The weights of a model's folder, whatever form they have.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// In place of shards: weights are made up (repeating_source.h). A JSON object:
//   layout  "nvfp4_v2" (the default), "nvfp4_v1", "fp8" or "bf16": how they are stored
//   seed    a whole number, 0 by default
inline constexpr std::string_view kDummyWeightsFile = "dummy_weights.json";

struct OpenedSource {
  std::unique_ptr<CheckpointSource> source;
  std::vector<std::string> warnings;
};

// Safetensors, or what dummy_weights.json asks for, with a warning that says so. Errors: those of
// SafetensorsSource::open and stored_tensors; kCorrupt naming the file where it is no such object;
// kInvalidArgument where a folder has both.
Result<OpenedSource> open_source(const std::filesystem::path& directory, const ModelConfig& config);

}  // namespace nibble
