// The data that nibble quantize calibrates with, from a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

struct CalibrationTextOptions {
  std::optional<int64_t> samples;  // as many as this; without it up to 512
  int64_t sequence = 512;          // tokens of a sample at most
};

// Token ids of each sample. A file whose first character is '{' or '[' is JSON lines: {"text":
// ...},
// {"messages": [...]} (with the checkpoint's chat template), {"ids": [...]} or the list alone; one
// sample a line, cut to `sequence` tokens. Any other file is text: cut into samples of `sequence`
// tokens. Added tokens in texts are tokens; each sample but ids begins with BOS where the tokenizer
// says so.
//
// Errors: kInvalidArgument naming the line that is unreadable, and for fewer samples than asked for
// or fewer than 4 samples or 256 tokens in all; those of the tokenizer and the chat template.
Result<std::vector<std::vector<int32_t>>> read_calibration_text(
    const std::filesystem::path& file, const std::filesystem::path& model,
    const CalibrationTextOptions& options);

}  // namespace nibble
