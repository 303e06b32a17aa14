// The header of a GGUF file of a DeepSeek-V3 model: sizes for planning, no weights are read. nibble
// cannot run such a file.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/plan/model_weights.h"

namespace nibble {

struct GgufModel {
  ModelConfig config;
  ModelWeights weights;  // Storage::kGguf throughout
  std::string source;    // "headers of 9 GGUF files, 1,025 tensors"
};

// Reads the file, and its neighbours when it is one part of several ("-00001-of-00009.gguf").
// Errors: kNotFound for a missing part; kCorrupt for anything that ends early or is out of range,
// naming the file and the byte; kUnsupported for another general.architecture than "deepseek2",
// another version than 2 and 3, or a tensor type that is not known.
// Source of the format: ggml's docs/gguf.md.
Result<GgufModel> read_gguf_header(const std::filesystem::path& path);

}  // namespace nibble
