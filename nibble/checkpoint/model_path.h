// Where a model's directory is: a path, or a name that is looked up.
#pragma once

#include <filesystem>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// An existing file or directory as it is. Otherwise a name such as "demo", looked up in
// $NIBBLE_MODELS (folders separated by ':'), in share/nibble/models beside the program's bin
// folder, and in the source tree's models folder; or "org/name" in an existing Hugging Face cache
// ($HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub), at the revision that refs/main names.
// Errors: kNotFound listing the folders tried; kInvalidArgument for an empty name.
Result<std::filesystem::path> resolve_model(std::string_view name);

}  // namespace nibble
