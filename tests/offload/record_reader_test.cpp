#include "nibble/offload/record_reader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
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

// Pages of this process whose last half is gone. Read as the file /proc/self/mem, the kernel itself
// says EIO there: to io_uring, too, which a preloaded library can't fool.
class HalfMapped {
 public:
  HalfMapped()
      : data_(static_cast<std::byte*>(::mmap(nullptr, 2 * kHalf, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    for (uint64_t i = 0; i < kHalf; ++i) data_[i] = static_cast<std::byte>(i % 251);
    ::munmap(data_ + kHalf, kHalf);
  }
  HalfMapped(const HalfMapped&) = delete;
  HalfMapped& operator=(const HalfMapped&) = delete;
  ~HalfMapped() { ::munmap(data_, kHalf); }
  uint64_t offset() const { return reinterpret_cast<uint64_t>(data_); }
  const std::byte* data() const { return data_; }

  static constexpr uint64_t kHalf = 32 * kPage;

 private:
  std::byte* data_;
};

TEST(RecordReader, ADiskThatSaysEioIsAnErrorOnEveryBackend) {
  const HalfMapped file;
  for (const IoBackend backend : {IoBackend::kAuto, IoBackend::kPread, IoBackend::kBuffered}) {
    for (const uint32_t piece_pages : {1, 3, 64}) {
      ReaderOptions options;
      options.backend = backend;
      options.depth = 4;
      options.piece_bytes = piece_pages * static_cast<uint32_t>(kPage);
      auto reader = RecordReader::open("/proc/self/mem", options).value();
      SCOPED_TRACE(reader->description());
      auto memory = SlotMemory::allocate(40 * kPage).value();
      const auto good = memory.bytes().first(32 * kPage);
      ASSERT_TRUE(read_now(*reader, file.offset(), good));
      EXPECT_EQ(0, std::memcmp(good.data(), file.data(), good.size()));
      // From the first bad page on, and across the border: after a short read.
      for (const uint64_t begin : {32, 20, 31}) {
        const Status status =
            read_now(*reader, file.offset() + begin * kPage, memory.bytes().first(8 * kPage));
        if (begin + 8 <= 32) {
          EXPECT_TRUE(status);
          continue;
        }
        ASSERT_FALSE(status) << begin;
        EXPECT_THAT(status.error().message, HasSubstr("Input/output error"));
        EXPECT_THAT(status.error().message, HasSubstr("/proc/self/mem"));
      }
      EXPECT_TRUE(read_now(*reader, file.offset(), good)) << "it goes on";
    }
  }
}

// io_uring waits in the kernel for a pipe that says nothing, like for a disk that stalls.
TEST(RecordReader, AStallUnderIoUringIsWaitedFor) {
  const auto path = testing::offload_folder() / "stalling";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int writer = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  ReaderOptions options;
  options.backend = IoBackend::kUring;
  auto reader = RecordReader::open(path, options);
  if (!reader) {
    EXPECT_EQ(reader.error().code, ErrorCode::kUnsupported);
    ::close(writer);
    GTEST_SKIP() << reader.error().message;
  }
  auto memory = SlotMemory::allocate(kPage).value();
  std::promise<Status> done;
  auto came = done.get_future();
  (*reader)->start(0, memory.bytes(), true, [&](Status s) { done.set_value(std::move(s)); });
  EXPECT_EQ(came.wait_for(std::chrono::milliseconds(80)), std::future_status::timeout);
  const std::vector<char> page(kPage, 'x');
  ASSERT_EQ(::write(writer, page.data(), page.size()), static_cast<ssize_t>(page.size()));
  EXPECT_TRUE(came.get());
  EXPECT_EQ(0, std::memcmp(memory.bytes().data(), page.data(), page.size()));
  ::close(writer);
}

TEST(RecordReader, NamesOfBackendsAreChecked) {
  EXPECT_EQ(parse_io_backend("uring").value(), IoBackend::kUring);
  EXPECT_THAT(parse_io_backend("mmap").error().message, HasSubstr("failing disk"));
  EXPECT_THAT(parse_io_backend("aio").error().message, HasSubstr("auto, uring, pread or buffered"));
}

}  // namespace
}  // namespace nibble
