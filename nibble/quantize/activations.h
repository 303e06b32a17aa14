// What calibration knows about the inputs of a linear layer, as the algorithms ask for it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Safe to ask from several threads.
class Activations {
 public:
  virtual ~Activations() = default;

  // The largest magnitude that the module's input had anywhere in the calibration data, for an
  // expert the largest of all experts of its layer; nothing for a module that never ran.
  virtual std::optional<float> input_amax(std::string_view module) const = 0;

  // How many input rows of the module are at hand: those of the layer that was calibrated last. 0
  // for an expert that no token was routed to.
  virtual int64_t num_rows(std::string_view module) const = 0;

  // Rows [first, first + count) into out [count, in_features].
  virtual Status read_rows(std::string_view module, int64_t first, int64_t count,
                           float* out) const = 0;
};

}  // namespace nibble
