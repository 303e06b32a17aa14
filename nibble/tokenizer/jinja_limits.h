// How much a template may do before it is stopped, so that a hostile one ends in an error.
#pragma once

#include <cstddef>

#include "nibble/base/result.h"

namespace nibble::jinja {

struct Limits {
  // Expressions, statements, items walked, and every 64 bytes looked at. A render of a thousand
  // messages takes about 50,000; 10 million take about a second.
  size_t max_steps = 10'000'000;
  // All strings and lists made on the way, in bytes, whether still alive or not.
  size_t max_bytes = size_t{1} << 30;
  // The text that comes out.
  size_t max_output_bytes = size_t{64} << 20;
};

// What is left of the limits during one render. Errors: kInvalidArgument naming the limit.
class Budget {
 public:
  explicit Budget(const Limits& limits)
      : limits_(limits), steps_left_(limits.max_steps), bytes_left_(limits.max_bytes) {}

  Status spend_steps(size_t steps);
  Status spend_bytes(size_t bytes);         // something of this size is made
  Status look_at(size_t bytes);             // something of this size is read through
  Status check_output(size_t bytes) const;  // the output has grown to this size

 private:
  Limits limits_;
  size_t steps_left_;
  size_t bytes_left_;
};

}  // namespace nibble::jinja
