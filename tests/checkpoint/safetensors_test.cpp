// Reading and writing safetensors: round trips, directories, and every kind of damage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::parse_file;
using testing::safetensors_file;
using testing::TempFolder;
using testing::write_file;
using testing::write_tensors;

// Written by hand as the format's description says, not by our writer.
constexpr std::string_view kTwoTensors =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
    R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})";

std::string header_error(std::string_view header, size_t data_bytes) {
  const auto parsed = parse_file(safetensors_file(header, data_bytes));
  return parsed ? "parsed" : parsed.error().message;
}

TEST(SafetensorsHeader, GivesNamesShapesAndPlacesInTheFile) {
  const auto header = parse_file(safetensors_file(kTwoTensors, 28));
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->metadata_format, "pt");
  ASSERT_EQ(header->entries.size(), 2U);
  EXPECT_EQ(header->entries[0].info.name, "b");
  EXPECT_EQ(header->entries[0].info.dtype, DType::kF32);
  EXPECT_EQ(header->entries[0].info.shape, (Shape{2, 3}));
  EXPECT_EQ(header->entries[0].offset, 8 + kTwoTensors.size() + 4);
  EXPECT_EQ(header->entries[0].size, 24U);
  EXPECT_EQ(header->entries[1].info.name, "a");
  EXPECT_EQ(header->entries[1].offset, 8 + kTwoTensors.size());
}

TEST(SafetensorsHeader, AcceptsScalarsEmptyTensorsPaddingAndUnknownFields) {
  const auto header = parse_file(safetensors_file(
      R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4],"note":{"shape":[[1],2],"x":null}},)"
      R"("e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4],"more":[{}]}}      )",
      4));
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->entries[0].info.shape, Shape{});
  EXPECT_EQ(header->entries[1].size, 0U);
}

TEST(SafetensorsHeader, RefusesDamageWithTheReason) {
  const struct {
    const char* header;
    size_t data_bytes;
    const char* reason;
  } cases[] = {
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, R"(tensor "b" begins at byte 2 of the data, expected 4: it overlaps)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
       9, R"(tensor "b" begins at byte 5 of the data, expected 4: there is a hole)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5, "there is a hole"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 5,
       "1 bytes after the last tensor belong to none"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3,
       "truncated: its tensors need 4 bytes of data, but 3 are there"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, "data_offsets [4, 0]"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}})", 4,
       R"(tensor "a" (F32 [3]) needs 12 bytes, but its data_offsets span 4)"},
      {R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,4]}})", 4, R"(unknown dtype "F4")"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       8, R"(tensor "a" appears twice)"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4,
       R"(dtype of tensor "a" appears twice)"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ appears twice"},
      {R"({"__metadata__":{"format":1}})", 0, "expected a string"},
      {R"({"__metadata__":3})", 0, "expected an object"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "overflows 63 bits"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
       "overflows 63 bits"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0,
       "overflows 63 bits"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]}})", 0,
       "shape of tensor \"a\" has a number that is no integer below 2^64"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "a negative number"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "no integer"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})",
       1, "more than 16 numbers"},
      {R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", 4, "an array of integers"},
      {R"({"a":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", 4, "an array of integers"},
      {R"({"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})", 4, "expected a string"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}})", 4,
       "has 3 numbers, expected 2"},
      {R"({"a":{"shape":[4],"data_offsets":[0,4]}})", 4, R"(tensor "a" has no dtype)"},
      {R"({"a":{"dtype":"U8","data_offsets":[0,4]}})", 4, R"(tensor "a" has no shape)"},
      {R"({"a":{"dtype":"U8","shape":[4]}})", 4, R"(tensor "a" has no data_offsets)"},
      {R"({"a":[1]})", 0, R"("a" is an array, expected an object)"},
      {R"({"a":7})", 0, R"("a" is a number, expected an object)"},
      {R"(["a"])", 0, "does not begin with '{'"},
      {R"( {"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4, "does not begin with '{'"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}} x)", 4, "malformed JSON at byte"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})", 4, "malformed JSON at byte"},
      {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
       "byte 10 of the header is not UTF-8"},
  };
  for (const auto& [header, data_bytes, reason] : cases) {
    EXPECT_THAT(header_error(header, data_bytes), HasSubstr(reason)) << header;
  }
}

TEST(SafetensorsHeader, RefusesDeepNestingInUnknownFields) {
  const std::string deep = R"({"a":{"x":)" + std::string(5000, '[') + std::string(5000, ']') + "}}";
  EXPECT_THAT(header_error(deep, 0), HasSubstr("nested deeper than 64 levels"));
}

TEST(SafetensorsHeader, RefusesLengthsThatTheFileDoesNotHave) {
  EXPECT_THAT(parse_file("").error().message, HasSubstr("0 bytes are too few"));
  EXPECT_THAT(parse_file("1234567").error().message, HasSubstr("7 bytes are too few"));
  std::string file = safetensors_file("{}", 0);
  file[0] = 3;
  EXPECT_THAT(parse_file(file).error().message,
              HasSubstr("the header claims 3 bytes, but only 2 follow"));
  file[4] = 1;  // 2^32 + 3
  EXPECT_THAT(parse_file(file).error().message, HasSubstr("the limit is 100000000"));
  EXPECT_THAT(parse_file(std::string(8, '\xff')).error().message, HasSubstr("the limit"));
  EXPECT_EQ(parse_file(file).error().code, ErrorCode::kCorrupt);
}

// Whatever a changed byte makes of the header, it is refused, or its tensors still cover the data
// exactly once.
TEST(SafetensorsHeader, SurvivesEveryChangeOfEveryByte) {
  const std::string file = safetensors_file(kTwoTensors, 28);
  int refused = 0;
  for (size_t at = 0; at < file.size() - 28; ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = file;
      changed[at] = static_cast<char>(value);
      const auto header = parse_file(changed);
      if (!header) {
        EXPECT_FALSE(header.error().message.empty());
        ++refused;
        continue;
      }
      uint64_t covered = 0;
      for (const auto& entry : header->entries) {
        EXPECT_LE(entry.offset + entry.size, file.size());
        covered += entry.size;
        EXPECT_EQ(entry.size, static_cast<uint64_t>(entry.info.shape.num_elements() *
                                                    dtype_size(entry.info.dtype)));
      }
      EXPECT_EQ(covered, 28U) << "byte " << at << " value " << value;
    }
  }
  EXPECT_GT(refused, 100 * 200);
}

TEST(SafetensorsHeader, SurvivesEveryTruncation) {
  const std::string file = safetensors_file(kTwoTensors, 28);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(parse_file(file.substr(0, size))) << size;
  }
}

TEST(SafetensorsWriter, WhatItWritesIsReadBackBitForBit) {
  std::mt19937_64 rng(11);
  const std::vector<DType> dtypes = {DType::kU8,  DType::kF8E4m3, DType::kBf16, DType::kF32,
                                     DType::kF64, DType::kI64,    DType::kBool, DType::kF16};
  for (int trial = 0; trial < 20; ++trial) {
    const TempFolder folder;
    std::vector<TensorInfo> tensors;
    std::map<std::string, std::vector<std::byte>> contents;
    const size_t count = rng() % 12;
    for (size_t i = 0; i < count; ++i) {
      std::vector<int64_t> dims(rng() % 4);
      for (int64_t& dim : dims) dim = static_cast<int64_t>(rng() % 6);
      std::string name = "t\"\\\n\xc3\xa9." + std::to_string(i);
      tensors.push_back({name, dtypes[rng() % dtypes.size()], Shape(dims), {}});
      const auto size = tensors.back().shape.num_elements() * dtype_size(tensors.back().dtype);
      auto& bytes = contents[name];
      bytes.resize(static_cast<size_t>(size));
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng());
    }
    auto writer = SafetensorsWriter::create(folder / "model.safetensors", tensors);
    ASSERT_TRUE(writer) << writer.error().message;
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), rng);
    for (const size_t i : order) {
      ASSERT_TRUE(writer->write(tensors[i].name, contents[tensors[i].name]));
    }
    EXPECT_FALSE(std::filesystem::exists(folder / "model.safetensors"));
    ASSERT_TRUE(writer->commit());

    const auto source = SafetensorsSource::open(folder.path());
    ASSERT_TRUE(source) << source.error().message;
    ASSERT_EQ((*source)->tensors().size(), count);
    for (const TensorInfo& expected : tensors) {
      const TensorInfo* info = (*source)->find(expected.name);
      ASSERT_NE(info, nullptr);
      EXPECT_EQ(info->dtype, expected.dtype);
      EXPECT_EQ(info->shape, expected.shape);
      EXPECT_EQ(info->shard, "model.safetensors");
      const auto view = (*source)->read(expected.name);
      ASSERT_TRUE(view);
      EXPECT_TRUE(std::equal(view->bytes.begin(), view->bytes.end(),
                             contents[expected.name].begin(), contents[expected.name].end()));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view->bytes.data()) %
                    static_cast<uintptr_t>(dtype_size(info->dtype)),
                0U);
      (*source)->release(expected.name);
    }
  }
}

TEST(SafetensorsWriter, PlacesTensorsAlignedAndHeadersPadded) {
  const TempFolder folder;
  write_tensors(folder / "x.safetensors", {{"bytes", DType::kU8, {3}, {}},
                                           {"float", DType::kF32, {1}, {}},
                                           {"half", DType::kBf16, {3}, {}}});
  const std::string file = testing::read_file(folder / "x.safetensors");
  EXPECT_EQ(file[0] % 8, 0);
  const auto header = parse_file(file);
  ASSERT_TRUE(header) << header.error().message;
  ASSERT_EQ(header->entries.size(), 3U);
  EXPECT_EQ(header->entries[0].info.name, "float");
  EXPECT_EQ(header->entries[1].info.name, "half");
  EXPECT_EQ(header->entries[2].info.name, "bytes");
  EXPECT_EQ(header->metadata_format, "pt");
}

TEST(SafetensorsWriter, RefusesMisuse) {
  const TempFolder folder;
  const TensorInfo a{"a", DType::kU8, {4}, {}};
  EXPECT_THAT(SafetensorsWriter::create(folder / "x", {a, a}).error().message,
              HasSubstr(R"(tensor "a" is declared twice)"));
  EXPECT_FALSE(SafetensorsWriter::create(folder / "x", {{"\xff", DType::kU8, {4}, {}}}));
  EXPECT_FALSE(SafetensorsWriter::create(folder / "missing/x", {a}));

  auto writer = SafetensorsWriter::create(folder / "x", {a, {"b", DType::kU8, {1}, {}}});
  ASSERT_TRUE(writer);
  const std::vector<std::byte> four(4);
  EXPECT_EQ(writer->write("c", four).error().code, ErrorCode::kNotFound);
  EXPECT_THAT(writer->write("b", four).error().message, HasSubstr("has 4 bytes, expected 1"));
  EXPECT_TRUE(writer->write("a", four));
  EXPECT_THAT(writer->write("a", four).error().message, HasSubstr("written twice"));
  EXPECT_THAT(writer->commit().error().message, HasSubstr(R"("b" was declared)"));
  EXPECT_FALSE(std::filesystem::exists(folder / "x"));
}

TEST(SafetensorsSource, CopiesTensorsThatLieUnaligned) {
  const TempFolder folder;
  // A header of odd length, and an F32 behind one byte.
  std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  std::string file = safetensors_file(header, 0);
  file += '\x07';
  const float value = 1.5F;
  file.append(reinterpret_cast<const char*>(&value), 4);
  write_file(folder / "x.safetensors", file);
  const auto source = SafetensorsSource::open(folder / "x.safetensors");
  ASSERT_TRUE(source) << source.error().message;
  const auto view = (*source)->read("b");
  ASSERT_TRUE(view);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view->bytes.data()) % 4, 0U);
  EXPECT_EQ(*view->data<float>(), 1.5F);
  (*source)->release("b");
  EXPECT_EQ(*(*source)->read("b")->data<float>(), 1.5F);
}

TEST(SafetensorsSource, ReadsShardsWithAndWithoutIndex) {
  const TempFolder folder;
  write_tensors(folder / "model-00001-of-00002.safetensors", {{"b", DType::kU8, {4}, {}}}, 1);
  write_tensors(folder / "model-00002-of-00002.safetensors", {{"a", DType::kU8, {2}, {}}}, 2);
  auto source = SafetensorsSource::open(folder.path());
  ASSERT_TRUE(source) << source.error().message;
  ASSERT_EQ((*source)->tensors().size(), 2U);
  EXPECT_EQ((*source)->tensors()[0].name, "a");  // sorted by name
  EXPECT_EQ((*source)->tensors()[0].shard, "model-00002-of-00002.safetensors");
  EXPECT_EQ((*source)->read("b")->bytes[3], std::byte{1});
  EXPECT_EQ((*source)->find("c"), nullptr);
  EXPECT_EQ((*source)->read("c").error().code, ErrorCode::kNotFound);
  EXPECT_TRUE((*source)->warnings().empty());

  // The index of the published NVFP4 checkpoint leaves the scales out; other files are not read.
  write_file(folder / "model.safetensors.index.json",
             R"({"metadata":{},"weight_map":{"a":"model-00002-of-00002.safetensors"}})");
  source = SafetensorsSource::open(folder.path());
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ((*source)->tensors().size(), 1U);
  EXPECT_THAT((*source)->warnings(),
              ::testing::ElementsAre(HasSubstr("model-00001-of-00002.safetensors is not read")));
}

std::string open_error(const std::filesystem::path& path) {
  const auto source = SafetensorsSource::open(path);
  return source ? "opened" : source.error().message;
}

TEST(SafetensorsSource, RefusesFoldersThatAreIncomplete) {
  const TempFolder folder;
  EXPECT_THAT(open_error(folder / "nothing"), HasSubstr("does not exist"));
  EXPECT_THAT(open_error(folder.path()), HasSubstr("has no *.safetensors files"));

  write_tensors(folder / "model-00001-of-00003.safetensors", {{"a", DType::kU8, {4}, {}}});
  write_tensors(folder / "model-00003-of-00003.safetensors", {{"b", DType::kU8, {4}, {}}});
  EXPECT_THAT(open_error(folder.path()),
              HasSubstr("shard model-00002-of-00003.safetensors is missing"));

  write_file(folder / "model.safetensors.index.json",
             R"({"weight_map":{"a":"model-00001-of-00003.safetensors","b":"gone.safetensors"}})");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("shard gone.safetensors is missing"));

  write_file(folder / "model.safetensors.index.json",
             R"({"weight_map":{"z":"model-00001-of-00003.safetensors"}})");
  EXPECT_THAT(open_error(folder.path()), HasSubstr(R"(names the tensor "z")"));
}

TEST(SafetensorsSource, RefusesAnIndexThatIsMalformedOrLeavesTheFolder) {
  const TempFolder folder;
  write_tensors(folder / "x.safetensors", {{"a", DType::kU8, {4}, {}}});
  const std::pair<const char*, const char*> cases[] = {
      {"{", "malformed JSON"},
      {R"({"metadata":{}})", "weight_map is missing"},
      {R"({"weight_map":[]})", "weight_map is an array, expected an object"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", "expected a file name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "expected a file name"},
      {R"({"weight_map":{"a":7}})", "the shard of \"a\" is an integer"},
      {R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})", "appears twice"},
  };
  for (const auto& [text, reason] : cases) {
    write_file(folder / "model.safetensors.index.json", text);
    EXPECT_THAT(open_error(folder.path()), HasSubstr(reason)) << text;
  }
}

TEST(SafetensorsSource, RefusesOneNameInTwoShards) {
  const TempFolder folder;
  write_tensors(folder / "x.safetensors", {{"a", DType::kU8, {4}, {}}});
  write_tensors(folder / "y.safetensors", {{"a", DType::kU8, {4}, {}}});
  EXPECT_EQ(open_error(folder.path()),
            R"(tensor "a" is in two shards, x.safetensors and y.safetensors)");
}

TEST(SafetensorsSource, OpensWhatItCanOfADamagedFolder) {
  const TempFolder folder;
  write_tensors(folder / "good.safetensors", {{"a", DType::kU8, {4}, {}}});
  write_file(folder / "short.safetensors", "123");
  write_file(folder / "torn.safetensors",
             safetensors_file(R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 1));
  std::vector<Error> problems;
  const auto source = SafetensorsSource::open_damaged(folder.path(), problems);
  ASSERT_EQ(problems.size(), 2U);
  EXPECT_THAT(problems[0].message, HasSubstr("short.safetensors"));
  EXPECT_THAT(problems[1].message, HasSubstr("torn.safetensors: truncated"));
  ASSERT_EQ(source->tensors().size(), 1U);
  EXPECT_TRUE(source->read("a"));
}

TEST(SafetensorsSource, OpensTheDemoCheckpoint) {
  const auto source = SafetensorsSource::open(NIBBLE_SOURCE_DIR "/models/demo");
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ((*source)->shard_names().size(), 4U);
  EXPECT_TRUE((*source)->warnings().empty());
  const TensorInfo* head = (*source)->find("lm_head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->shape, (Shape{4096, 384}));
}

}  // namespace
}  // namespace nibble
