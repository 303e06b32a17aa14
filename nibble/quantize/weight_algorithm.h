// How the codes of a matrix are chosen; the file format is the same for all.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

struct WeightAlgorithm {
  Nvfp4Mode mode = Nvfp4Mode::kMax;  // how block scales are chosen
  bool gptq = false;                 // and rounding errors made up for by later columns

  // Whether it looks at what the matrix is multiplied with, so that calibration data is needed.
  bool needs_activations() const { return gptq || mode == Nvfp4Mode::kLocalHessian; }

  // "max", "mse", "gptq-4over6".
  std::string name() const;

  bool operator==(const WeightAlgorithm&) const = default;
};

// max, 4over6, mse, local-hessian, each also with "gptq-" in front. Errors: kInvalidArgument naming
// them.
Result<WeightAlgorithm> parse_weight_algorithm(std::string_view name);

}  // namespace nibble
