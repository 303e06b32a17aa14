// The model a plan is about, from the best source there is: the headers of a checkpoint, its index,
// its config.json, a GGUF file's header, or a built-in name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/config.h"
#include "nibble/plan/formats.h"
#include "nibble/plan/model_weights.h"
#include "nibble/plan/plan_error.h"

namespace nibble {

struct PlanModel {
  std::string name;
  ModelConfig config;
  std::string source;                  // "headers of 163 shards", "config.json alone", "built in"
  std::optional<ModelWeights> stored;  // what the checkpoint holds, when there is one
  std::string stored_format;           // the format that `stored` is in, "nvfp4-v2"
  std::string directory;               // where a server would find it; empty for names
  std::vector<std::string> warnings;
};

// deepseek-r1, deepseek-r1-0528, deepseek-r1-zero, deepseek-v3, deepseek-v3-0324: one shape.
std::vector<std::string> builtin_model_names();

// An existing path, a built-in name, or a name that resolve_model() finds, in this order. A missing
// shard is a warning, and sizes then come from config.json.
// Errors: model_not_found with the nearest names; bad_model for a file that can't be read: another
// architecture, a missing field, a damaged or truncated shard, each as the checkpoint's reader
// says it.
PlanResult<PlanModel> load_plan_model(std::string_view name);

}  // namespace nibble
