// How far the matrices of a quantized checkpoint are from those they were made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

struct LinearComparison {
  std::string module;
  std::string format;            // of b: "NVFP4", "FP8 128x128"
  double signal = 0;             // sum of squares of a, rounded to BF16
  double error = 0;              // sum of squares of a - b
  double largest_error = 0;      // of one value
  int64_t num_blocks = 0;        // NVFP4's, 0 for other formats
  int64_t saturated_blocks = 0;  // scale 448, the largest there is
  int64_t zero_blocks = 0;       // all codes 0

  // 10 log10(signal / error); infinite for equal values.
  double sqnr_db() const;
};

// Every linear layer of the model that is stored in another format in b than in a, or has other
// values, in the order of the model. Errors: those of SourceRows for either; kCancelled.
Result<std::vector<LinearComparison>> compare_weights(const CheckpointSource& a,
                                                      const CheckpointSource& b,
                                                      const ModelConfig& config, int threads);

}  // namespace nibble
