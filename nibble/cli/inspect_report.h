// The findings of an inspection as text and as JSON.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/checkpoint/inspection.h"

namespace nibble {

// Tables for people. `list_tensors`: every tensor instead of patterns.
std::string text_report(const Inspection& inspection, const std::filesystem::path& path,
                        bool list_tensors);

// {"path", "config", "quantization", "files", "classes", "totals", "tensors" (patterns, or every
// one), "values_checked", "warnings", "problems"}.
std::string json_report(const Inspection& inspection, const std::filesystem::path& path,
                        bool list_tensors);

// One tensor: where it is, its shape, and statistics of its values as they are stored (U8 of NVFP4
// as pairs of E2M1 codes, without scales). Errors: kNotFound with the nearest names.
Result<std::string> tensor_report(const SafetensorsSource& source, std::string_view name,
                                  bool json);

}  // namespace nibble
