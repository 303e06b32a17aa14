#include "nibble/offload/record_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <fstream>
#include <future>

#include "nibble/offload/slot_memory.h"
#include "tests/offload/offload_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kPage = 4096;

// 512 pages; each 8 bytes hold their own offset.
std::filesystem::path numbered_file() {
  static const std::filesystem::path path = [] {
    const auto name = testing::offload_folder() / "numbers";
    std::ofstream file(name, std::ios::binary);
    for (uint64_t i = 0; i < 512 * kPage; i += 8) {
      file.write(reinterpret_cast<const char*>(&i), 8);
    }
    return name;
  }();
  return path;
}

Status read_now(RecordReader& reader, uint64_t offset, std::span<std::byte> memory) {
  std::promise<Status> done;
  reader.start(offset, memory, true, [&](Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

TEST(RecordReader, EveryBackendReadsTheBytesThatAreThere) {
  for (const IoBackend backend : {IoBackend::kAuto, IoBackend::kPread, IoBackend::kBuffered}) {
    for (const int depth : {1, 5, 64}) {
      ReaderOptions options;
      options.backend = backend;
      options.depth = depth;
      options.piece_bytes = 3 * kPage;
      auto reader = RecordReader::open(numbered_file(), options).value();
      SCOPED_TRACE(reader->description());
      auto memory = SlotMemory::allocate(100 * kPage).value();
      ASSERT_TRUE(read_now(*reader, 40 * kPage, memory.bytes()));
      const auto* const words = reinterpret_cast<const uint64_t*>(memory.bytes().data());
      for (uint64_t i = 0; i < 100 * kPage / 8; ++i) ASSERT_EQ(words[i], 40 * kPage + 8 * i);
      EXPECT_EQ(reader->bytes_read(), 100 * kPage);
      EXPECT_GT(reader->busy_seconds(), 0);
    }
  }
}

TEST(RecordReader, ManyReadsAtOnceComeBackOnceEach) {
  ReaderOptions options;
  options.depth = 8;
  options.piece_bytes = kPage;
  auto reader = RecordReader::open(numbered_file(), options).value();
  auto memory = SlotMemory::allocate(512 * kPage).value();
  std::atomic<int> done{0};
  std::promise<void> all;
  for (uint64_t i = 0; i < 128; ++i) {
    reader->start(4 * i * kPage, memory.bytes().subspan(4 * i * kPage, 4 * kPage), i % 3 != 0,
                  [&](const Status& status) {
                    EXPECT_TRUE(status);
                    if (done.fetch_add(1) + 1 == 128) all.set_value();
                  });
  }
  all.get_future().wait();
  const auto* const words = reinterpret_cast<const uint64_t*>(memory.bytes().data());
  for (uint64_t i = 0; i < 512 * kPage / 8; ++i) ASSERT_EQ(words[i], 8 * i);
}

TEST(RecordReader, TheEndOfTheFileIsAnErrorNeverZeros) {
  auto reader = RecordReader::open(numbered_file(), {}).value();
  auto memory = SlotMemory::allocate(16 * kPage).value();
  const Status status = read_now(*reader, 500 * kPage, memory.bytes());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(status.error().message, HasSubstr("cut short"));
}

// A guess waits while something urgent is under way; cancelled meanwhile, it never comes.
TEST(RecordReader, AGuessIsCancelledOrHurried) {
  ReaderOptions options;
  options.backend = IoBackend::kPread;
  options.depth = 1;
  options.piece_bytes = kPage;
  auto reader = RecordReader::open(numbered_file(), options).value();
  auto memory = SlotMemory::allocate(500 * kPage).value();
  std::promise<void> gate;
  const std::shared_future<void> opened = gate.get_future().share();
  // The one thread of the reader is held in the first read's completion.
  reader->start(0, memory.bytes().first(kPage), true, [opened](const Status&) { opened.wait(); });
  std::promise<Status> second;
  reader->start(kPage, memory.bytes().subspan(kPage, kPage), true,
                [&](Status status) { second.set_value(std::move(status)); });
  std::atomic<bool> came{false};
  const uint64_t guess = reader->start(2 * kPage, memory.bytes().subspan(2 * kPage, kPage), false,
                                       [&](const Status&) { came = true; });
  std::promise<Status> third;
  const uint64_t hurried =
      reader->start(3 * kPage, memory.bytes().subspan(3 * kPage, kPage), false,
                    [&](Status status) { third.set_value(std::move(status)); });
  EXPECT_TRUE(reader->cancel(guess));
  reader->hurry(hurried);
  EXPECT_FALSE(reader->cancel(hurried)) << "it is no guess any more";
  gate.set_value();
  EXPECT_TRUE(second.get_future().get());
  EXPECT_TRUE(third.get_future().get());
  reader.reset();
  EXPECT_FALSE(came);
}

TEST(RecordReader, AReaderMayGoWhileItReads) {
  for (int i = 0; i < 20; ++i) {
    auto memory = SlotMemory::allocate(512 * kPage).value();
    ReaderOptions options;
    options.depth = 1 + i % 4;
    options.piece_bytes = kPage;
    auto reader = RecordReader::open(numbered_file(), options).value();
    for (uint64_t r = 0; r < 8; ++r) {
      reader->start(r * 64 * kPage, memory.bytes().subspan(r * 64 * kPage, 64 * kPage), r % 2 == 0,
                    [](const Status&) {});
    }
  }
}

TEST(RecordReader, NamesOfBackendsAreChecked) {
  EXPECT_EQ(parse_io_backend("uring").value(), IoBackend::kUring);
  EXPECT_THAT(parse_io_backend("mmap").error().message, HasSubstr("failing disk"));
  EXPECT_THAT(parse_io_backend("aio").error().message, HasSubstr("auto, uring, pread or buffered"));
}

}  // namespace
}  // namespace nibble
