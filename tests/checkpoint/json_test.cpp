#include "nibble/checkpoint/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string json_error(std::string_view text) {
  const auto value = parse_json(text, "x");
  return value ? "parsed" : value.error().message;
}

TEST(Json, KeepsOrderAndKindsOfValues) {
  const std::string text =
      R"({"z":1,"a":[true,null,-2,1.5,1e-06,1.0],"s":"q\"\\\n\u0001é","o":{},"e":[]})";
  const auto value = parse_json(text, "x");
  ASSERT_TRUE(value) << value.error().message;
  EXPECT_EQ(to_json(*value, -1), text);
  EXPECT_EQ(*value->find("z")->as_integer(), 1);
  EXPECT_EQ(value->find("z")->as_number(), 1.0);
  EXPECT_EQ(value->find("b"), nullptr);
  EXPECT_EQ((*value->find("a")->as_array())[5].as_integer(), nullptr);
}

TEST(Json, IndentsByTwoSpaces) {
  const auto value = parse_json(R"({"a":[1,2],"b":{}})", "x");
  EXPECT_EQ(to_json(*value), "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}");
}

TEST(Json, SetsReplacesAndRemovesMembers) {
  JsonValue value;
  value.set("a", JsonValue::integer(1));
  value.set("b", JsonValue::string("x"));
  value.set("a", JsonValue::boolean(false));
  EXPECT_EQ(to_json(value, -1), R"({"a":false,"b":"x"})");
  value.remove("a");
  EXPECT_EQ(to_json(value, -1), R"({"b":"x"})");
}

TEST(Json, IntegersBeyond63BitsAreNumbers) {
  const auto value = parse_json("[9223372036854775807,9223372036854775808]", "x");
  const auto& items = *value->as_array();
  EXPECT_EQ(*items[0].as_integer(), INT64_MAX);
  EXPECT_EQ(items[1].as_integer(), nullptr);
  EXPECT_EQ(items[1].as_number(), 9223372036854775808.0);
}

TEST(Json, RefusesWhatIsMalformed) {
  EXPECT_THAT(json_error(""), HasSubstr("x: malformed JSON at byte"));
  EXPECT_THAT(json_error("[1,2"), HasSubstr("x: malformed JSON at byte"));
  EXPECT_THAT(json_error("[1]]"), HasSubstr("x: malformed JSON at byte 4"));
  EXPECT_THAT(json_error("[1e999]"), HasSubstr("malformed JSON"));
  EXPECT_THAT(json_error("[\"\xff\"]"), HasSubstr("x: byte 2 is not UTF-8"));
  EXPECT_THAT(json_error(R"({"a":{"k":1,"k":2}})"), HasSubstr("the key \"k\" appears twice"));
  EXPECT_THAT(json_error(std::string(100000, '[')), HasSubstr("nested deeper than 64 levels"));
}

}  // namespace
}  // namespace nibble
