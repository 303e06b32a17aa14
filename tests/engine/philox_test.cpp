#include "nibble/engine/philox.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

// Known answers of the Random123 library (kat_vectors: philox4x32 10).
TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// From the first known answer: 0x6627e8 / 2^24.
TEST(Philox, UniformTakesThe24HighBitsOfTheFirstWord) {
  EXPECT_EQ(philox_uniform(0, 0, RandomStream::kDraw, 0), 0x6627e8 / 16777216.0);
}

TEST(Philox, EveryPartOfTheCounterAndBothHalvesOfTheSeedMatter) {
  const double base = philox_uniform(1, 2, RandomStream::kDraw, 3);
  EXPECT_NE(base, philox_uniform(2, 2, RandomStream::kDraw, 3));
  EXPECT_NE(base, philox_uniform(1 | uint64_t{1} << 32, 2, RandomStream::kDraw, 3));
  EXPECT_NE(base, philox_uniform(1, 3, RandomStream::kDraw, 3));
  EXPECT_NE(base, philox_uniform(1, 2, RandomStream::kAcceptance, 3));
  EXPECT_NE(base, philox_uniform(1, 2, RandomStream::kDraw, 4));
}

}  // namespace
}  // namespace nibble
