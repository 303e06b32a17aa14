#include "nibble/base/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>

#include "tests/base/temporary_folder.h"

namespace nibble {
namespace {

using nibble::testing::TemporaryFolder;
using ::testing::HasSubstr;

void write_plainly(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, ShowsTheBytesOfAFile) {
  const TemporaryFolder folder;
  const std::string text("a\0b\xff\n", 5);
  write_plainly(folder / "file", text);
  const auto file = MappedFile::open(folder / "file");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(text_of(*file), text);
}

TEST(MappedFile, GivesAnEmptySpanForAnEmptyFile) {
  const TemporaryFolder folder;
  write_plainly(folder / "empty", "");
  const auto file = MappedFile::open(folder / "empty");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_TRUE(file->bytes().empty());
  file->release(0, 100);
}

TEST(MappedFile, NamesAFileThatIsMissing) {
  const TemporaryFolder folder;
  const auto file = MappedFile::open(folder / "nothing-here");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(file.error().message, HasSubstr("nothing-here"));
}

TEST(MappedFile, RefusesAFolder) {
  const TemporaryFolder folder;
  const auto file = MappedFile::open(folder.path());
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(file.error().message, HasSubstr("not a regular file"));
}

TEST(MappedFile, RefusesAPipeWithoutWaitingForAWriter) {
  const TemporaryFolder folder;
  const auto path = folder / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const auto file = MappedFile::open(path);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kInvalidArgument);
}

TEST(MappedFile, ReportsAFileThatMayNotBeRead) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const TemporaryFolder folder;
  write_plainly(folder / "secret", "x");
  ASSERT_EQ(::chmod((folder / "secret").c_str(), 0), 0);
  const auto file = MappedFile::open(folder / "secret");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kUnavailable);
}

TEST(MappedFile, KeepsItsBytesWhereverItMoves) {
  const TemporaryFolder folder;
  write_plainly(folder / "a", "first");
  write_plainly(folder / "b", "second");
  auto a = MappedFile::open(folder / "a");
  auto b = MappedFile::open(folder / "b");
  ASSERT_TRUE(a && b);
  const std::byte* const address = a->bytes().data();
  MappedFile moved = *std::move(a);
  EXPECT_EQ(moved.bytes().data(), address);
  EXPECT_EQ(text_of(moved), "first");
  moved = *std::move(b);
  EXPECT_EQ(text_of(moved), "second");
}

TEST(MappedFile, ReleasingBytesNeverChangesThem) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 20000; ++i) text += static_cast<char>('a' + i % 26);
  write_plainly(folder / "file", text);
  const auto file = MappedFile::open(folder / "file");
  ASSERT_TRUE(file) << file.error().message;
  file->release(0, text.size());
  file->release(1, 3);
  file->release(4095, 8194);
  file->release(text.size(), 1);
  file->release(text.size() + 100'000, 1);
  file->release(5, SIZE_MAX - 2);
  EXPECT_EQ(text_of(*file), text);
}

TEST(ReadTextFile, ReadsAWholeFile) {
  const TemporaryFolder folder;
  write_plainly(folder / "file", "{\n}\n");
  EXPECT_EQ(read_text_file(folder / "file").value(), "{\n}\n");
}

TEST(ReadTextFile, RefusesMoreThanTheLimitAndTakesTheLimitItself) {
  const TemporaryFolder folder;
  write_plainly(folder / "file", "12345");
  EXPECT_EQ(read_text_file(folder / "file", 5).value(), "12345");
  const auto text = read_text_file(folder / "file", 4);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(text.error().message, HasSubstr("has 5 bytes, more than the 4"));
}

}  // namespace
}  // namespace nibble
