#include "nibble/base/output_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "tests/base/temporary_folder.h"

namespace nibble {
namespace {

using nibble::testing::TemporaryFolder;
using ::testing::HasSubstr;

// Nothing can be written past `bytes` while this lives: a disk that is full, without filling one.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_ = {};
};

TEST(OutputFile, AppearsUnderItsNameOnlyWithTheCommit) {
  const TemporaryFolder folder;
  auto file = OutputFile::create(folder / "out");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->path(), folder / "out");
  ASSERT_TRUE(file->write("hello "));
  ASSERT_TRUE(file->write("world"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_text_file(folder / "out").value(), "hello world");
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, LeavesNothingBehindWithoutACommit) {
  const TemporaryFolder folder;
  {
    auto file = OutputFile::create(folder / "out");
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->write("half of it"));
    EXPECT_EQ(folder.num_entries(), 1);
  }
  EXPECT_EQ(folder.num_entries(), 0);
}

TEST(OutputFile, KeepsTheOldFileUntilTheNewOneIsWhole) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_text_file(folder / "out", "old"));
  {
    auto file = OutputFile::create(folder / "out");
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->write("new, but"));
  }
  EXPECT_EQ(read_text_file(folder / "out").value(), "old");
  ASSERT_TRUE(write_text_file(folder / "out", "new"));
  EXPECT_EQ(read_text_file(folder / "out").value(), "new");
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, TheLaterOfTwoWritersOfOneNameWinsWhole) {
  const TemporaryFolder folder;
  auto first = OutputFile::create(folder / "out");
  auto second = OutputFile::create(folder / "out");
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(first->write("the first, which is longer"));
  ASSERT_TRUE(second->write("the second"));
  ASSERT_TRUE(first->commit());
  EXPECT_EQ(read_text_file(folder / "out").value(), "the first, which is longer");
  ASSERT_TRUE(second->commit());
  EXPECT_EQ(read_text_file(folder / "out").value(), "the second");
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, WritesAtPositionsInAnyOrderWithoutMovingTheEnd) {
  const TemporaryFolder folder;
  auto file = OutputFile::create(folder / "out");
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->write("0123456789"));
  const std::string xy = "XY";
  const auto bytes = std::as_bytes(std::span<const char>(xy));
  ASSERT_TRUE(file->write_at(3, bytes));
  ASSERT_TRUE(file->write_at(14, bytes));
  ASSERT_TRUE(file->write("ab"));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_text_file(folder / "out").value(), std::string("012XY56789ab\0\0XY", 16));
}

TEST(OutputFile, TakesDisjointRangesFromSeveralThreads) {
  const TemporaryFolder folder;
  auto file = OutputFile::create(folder / "out");
  ASSERT_TRUE(file);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string part(1000, static_cast<char>('a' + t));
      for (int i = t; i < 40; i += 4) {
        EXPECT_TRUE(file->write_at(static_cast<uint64_t>(i) * 1000,
                                   std::as_bytes(std::span<const char>(part))));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(file->commit());
  const std::string text = read_text_file(folder / "out").value();
  ASSERT_EQ(text.size(), 40'000u);
  for (size_t i = 0; i < text.size(); ++i) {
    ASSERT_EQ(text[i], static_cast<char>('a' + i / 1000 % 4)) << i;
  }
}

TEST(OutputFile, NamesItsFileWhenTheDiskIsFullAndLeavesNothing) {
  const TemporaryFolder folder;
  {
    auto file = OutputFile::create(folder / "shard");
    ASSERT_TRUE(file);
    const FileSizeLimit limit(1000);
    const Status written = file->write(std::string(3000, 'x'));
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(written.error().message, HasSubstr("shard at byte 1000: File too large"));
  }
  EXPECT_EQ(folder.num_entries(), 0);
}

TEST(WriteTextFile, LeavesTheOldFileWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_text_file(folder / "index", "old"));
  const FileSizeLimit limit(10);
  EXPECT_FALSE(write_text_file(folder / "index", "longer than ten bytes"));
  EXPECT_EQ(read_text_file(folder / "index").value(), "old");
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, RefusesAFolderThatIsMissing) {
  const TemporaryFolder folder;
  const auto file = OutputFile::create(folder / "no/such/folder/out");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(file.error().message, HasSubstr("no/such/folder/out"));
}

TEST(OutputFile, FailsToReplaceAFolderAndCleansUp) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "out");
  auto file = OutputFile::create(folder / "out");
  ASSERT_TRUE(file);
  EXPECT_FALSE(file->commit());
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, CannotBeUsedAfterItsCommit) {
  const TemporaryFolder folder;
  auto file = OutputFile::create(folder / "out");
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->write("x"));
  ASSERT_TRUE(file->commit());
  EXPECT_FALSE(file->write("y"));
  EXPECT_FALSE(file->commit());
  EXPECT_EQ(read_text_file(folder / "out").value(), "x");
}

TEST(OutputFile, MovesWithWhatWasWritten) {
  const TemporaryFolder folder;
  auto file = OutputFile::create(folder / "a");
  auto other = OutputFile::create(folder / "b");
  ASSERT_TRUE(file && other);
  ASSERT_TRUE(file->write("a1"));
  ASSERT_TRUE(other->write("b1"));
  OutputFile moved = *std::move(file);
  ASSERT_TRUE(moved.write("a2"));
  moved = *std::move(other);  // what was there before is given up
  EXPECT_EQ(folder.num_entries(), 1);
  ASSERT_TRUE(moved.write("b2"));
  ASSERT_TRUE(moved.commit());
  EXPECT_EQ(read_text_file(folder / "b").value(), "b1b2");
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(OutputFile, WorksForANameWithoutAFolder) {
  const TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const Status written = write_text_file("plain", "text");
  std::filesystem::current_path(before);
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_EQ(read_text_file(folder / "plain").value(), "text");
}

TEST(SyncDirectory, NamesAFolderThatIsMissing) {
  const TemporaryFolder folder;
  ASSERT_TRUE(sync_directory(folder.path()));
  const Status missing = sync_directory(folder / "gone");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("gone"));
}

// Some file systems know no sync of a folder (EINVAL); a file that was renamed there is in place.
TEST(SyncDirectory, AcceptsAFileSystemThatCannotSyncFolders) {
  EXPECT_TRUE(sync_directory("/proc"));
}

}  // namespace
}  // namespace nibble
