// Orders of options: our own from a seed, and the stream of OpenAI's simple-evals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nibble {

// Fisher-Yates over 0 .. count - 1, driven by splitmix64.
std::vector<size_t> shuffled_order(size_t count, uint64_t seed);

// Python's random.Random(0).sample(range(4), 4), one draw after the other: MT19937 with
// init_by_array([0]); below n: the top bit_length(n) bits, again while they are n or more; the pool
// method of sample(). Source: CPython's Modules/_randommodule.c and Lib/random.py.
class PythonShuffle {
 public:
  PythonShuffle();
  std::vector<size_t> next();

 private:
  static constexpr size_t kSize = 624;
  uint32_t bits();
  size_t below(size_t count);

  uint32_t state_[kSize];
  size_t at_ = kSize;
};

// One step of splitmix64 (Steele, Lea, Flood 2014).
uint64_t splitmix64(uint64_t* state);

}  // namespace nibble
