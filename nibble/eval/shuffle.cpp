#include "nibble/eval/shuffle.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace nibble {

uint64_t splitmix64(uint64_t* state) {
  uint64_t x = *state += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

std::vector<size_t> shuffled_order(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  uint64_t state = seed;
  for (size_t i = count; i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(splitmix64(&state) % i)]);
  }
  return order;
}

// init_by_array with the key [0]; Matsumoto and Nishimura, mt19937ar.c.
PythonShuffle::PythonShuffle() : state_{} {
  state_[0] = 19650218U;
  for (size_t i = 1; i < kSize; ++i) {
    state_[i] = 1812433253U * (state_[i - 1] ^ state_[i - 1] >> 30) + static_cast<uint32_t>(i);
  }
  size_t i = 1;
  const auto wrap = [&] {
    if (++i < kSize) return;
    state_[0] = state_[kSize - 1];
    i = 1;
  };
  for (size_t k = 0; k < kSize; ++k) {
    state_[i] ^= (state_[i - 1] ^ state_[i - 1] >> 30) * 1664525U;
    wrap();
  }
  for (size_t k = 0; k + 1 < kSize; ++k) {
    state_[i] = (state_[i] ^ (state_[i - 1] ^ state_[i - 1] >> 30) * 1566083941U) -
                static_cast<uint32_t>(i);
    wrap();
  }
  state_[0] = 0x80000000U;
}

uint32_t PythonShuffle::bits() {
  if (at_ == kSize) {
    for (size_t i = 0; i < kSize; ++i) {
      const uint32_t y = (state_[i] & 0x80000000U) | (state_[(i + 1) % kSize] & 0x7fffffffU);
      state_[i] = state_[(i + 397) % kSize] ^ y >> 1 ^ ((y & 1U) != 0 ? 0x9908b0dfU : 0U);
    }
    at_ = 0;
  }
  uint32_t y = state_[at_++];
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680U;
  y ^= y << 15 & 0xefc60000U;
  return y ^ y >> 18;
}

size_t PythonShuffle::below(size_t count) {
  const auto width = static_cast<unsigned>(std::bit_width(count));
  for (;;) {
    const size_t drawn = bits() >> (32 - width);
    if (drawn < count) return drawn;
  }
}

std::vector<size_t> PythonShuffle::next() {
  std::vector<size_t> pool = {0, 1, 2, 3}, drawn;
  for (size_t left = pool.size(); left > 0; --left) {
    const size_t at = below(left);
    drawn.push_back(pool[at]);
    pool[at] = pool[left - 1];
  }
  return drawn;
}

}  // namespace nibble
