// What a checkpoint holds and what is wrong with it: the findings behind `nibble inspect`.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/progress.h"
#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/model_tensors.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/checkpoint/safetensors_source.h"

namespace nibble {

// Weights and scales of one ModuleClass, as they are in the files.
struct ClassSummary {
  int64_t num_weights = 0;                 // tensors without scales
  int64_t num_parameters = 0;              // from shapes; a U8 of NVFP4 counts two; scales not
  int64_t num_bytes = 0;                   // scales included
  std::map<std::string, int64_t> formats;  // "NVFP4", "FP8", "BF16", ... -> number of weights
};

struct Inspection {
  std::unique_ptr<SafetensorsSource> source;  // what could be opened; never null
  std::optional<ModelConfig> config;          // absent for a single file or a config with problems
  std::optional<QuantConfig> quant;
  std::array<ClassSummary, kNumModuleClasses> classes;
  ClassSummary other;  // names that no DeepSeek-V3 model has
  ClassSummary total;
  int64_t num_scales = 0;
  int64_t num_copied_parameters = 0;  // in the MTP layer's copies of embed_tokens and lm_head
  bool values_checked = false;
  std::vector<std::string> problems;  // each one a reason why the checkpoint can't be run
  std::vector<std::string> warnings;
};

enum class CheckValues {
  kAuto,  // as kYes up to kAutoCheckBytes of tensors, otherwise kNo
  kNo,    // headers, config files and the small scales
  kYes,   // every scale, and every FP8 code
};
inline constexpr int64_t kAutoCheckBytes = int64_t{4} << 30;

// Looks at everything that can be looked at: trouble becomes an entry of `problems`, not an error.
// `show_progress`: a line on stderr while values are read.
// Errors: kNotFound when the path does not exist, kCancelled after Ctrl-C.
Result<Inspection> inspect_checkpoint(const std::filesystem::path& path, CheckValues check_values,
                                      bool show_progress);

// The class of a weight or of a scale by its name; mtp_layer is the index of the MTP layer, -1 for
// none. Nothing for names that no DeepSeek-V3 model has.
std::optional<ModuleClass> classify_tensor(std::string_view name, int64_t mtp_layer);

// Whether a tensor of that name is a scale that belongs to some weight.
bool is_scale_name(std::string_view name);

// "NVFP4" for a U8 weight with weight_scale, "FP8" for F8_E4M3 with weight_scale_inv, otherwise the
// dtype's name.
std::string stored_format(const CheckpointSource& source, const TensorInfo& weight);

// Model parameters in one stored tensor: two in each U8 of NVFP4, none in a scale.
int64_t stored_parameters(const CheckpointSource& source, const TensorInfo& info);

}  // namespace nibble
