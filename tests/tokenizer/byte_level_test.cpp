#include "nibble/tokenizer/byte_level.h"

#include <gtest/gtest.h>

#include <set>

namespace nibble {
namespace {

// From GPT-2's bytes_to_unicode: the first byte that needs a stand-in is 0, the 33rd is the space.
TEST(ByteLevel, PrintableBytesStandForThemselvesAndOthersFromU0100Up) {
  EXPECT_EQ(byte_to_alphabet('A'), "A");
  EXPECT_EQ(byte_to_alphabet(0x00), "\u0100");
  EXPECT_EQ(byte_to_alphabet('\n'), "\u010a");
  EXPECT_EQ(byte_to_alphabet(' '), "\u0120");
  EXPECT_EQ(byte_to_alphabet(0x7f), "\u0121");
  EXPECT_EQ(byte_to_alphabet(0xad), "\u0143");
  EXPECT_EQ(byte_to_alphabet(0xe9), "\u00e9");
}

TEST(ByteLevel, EveryByteHasItsOwnCharacterAndComesBack) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text = byte_to_alphabet(static_cast<uint8_t>(byte));
    EXPECT_TRUE(seen.insert(text).second) << byte;
    EXPECT_EQ(alphabet_to_bytes(text), std::string(1, static_cast<char>(byte)));
  }
}

TEST(ByteLevel, CharactersOutsideTheAlphabetGiveNothing) {
  EXPECT_EQ(alphabet_to_bytes(" "), std::nullopt);
  EXPECT_EQ(alphabet_to_bytes("a\u00ad"), std::nullopt);
  EXPECT_EQ(alphabet_to_bytes("\u0144"), std::nullopt);
  EXPECT_EQ(alphabet_to_bytes("<\uff5cUser\uff5c>"), std::nullopt);
  EXPECT_EQ(alphabet_to_bytes("\U0001f600"), std::nullopt);
  EXPECT_EQ(alphabet_to_bytes(""), "");
}

}  // namespace
}  // namespace nibble
