// nibble quantize --verify A B: how far a quantized checkpoint is from the one it was made from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "nibble/base/result.h"

namespace nibble {

struct VerifyOptions {
  std::string text;    // a file to compare logits over; empty: weights alone
  int64_t tokens = 0;  // of the text; 0: all
  bool w4a4 = false;   // B's NVFP4 linears quantize their activations
  bool json = false;
  int threads = 0;
};

// Prints layout problems, the signal-to-error ratio of each quantized matrix (the worst ones by
// name), saturated and zero blocks, and with a text mean KL(A || B), agreement of the likeliest
// token and both perplexities, on BF16 caches.
// Errors: those of reading and loading either; kCorrupt when B's layout has problems, after all was
// printed.
Status verify_quantized(const std::filesystem::path& a, const std::filesystem::path& b,
                        const VerifyOptions& options);

}  // namespace nibble
