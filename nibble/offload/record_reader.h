// Reads whole records of one file, several at once, in pieces: what is needed now before what may
// be needed later.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/offload/block_io.h"

namespace nibble {

enum class IoBackend {
  kAuto,      // io_uring, or pread where there is none
  kUring,     // refused where there is none
  kPread,     // threads
  kBuffered,  // threads, through the page cache
};

// auto, uring, pread, buffered. Errors: kInvalidArgument naming these, and why not mmap.
Result<IoBackend> parse_io_backend(std::string_view name);

struct ReaderOptions {
  IoBackend backend = IoBackend::kAuto;
  int depth = 16;                  // pieces under way, 1..256
  uint32_t piece_bytes = 1 << 20;  // a multiple of 4096
};

// Thread-safe.
class RecordReader {
 public:
  // On a thread of the reader, without any lock of it held. kCancelled after cancel().
  using Done = std::function<void(Status)>;

  // Opens with O_DIRECT where the file system has it. Errors: kInvalidArgument for options out of
  // range; those of open; kUnsupported for kUring without io_uring.
  static Result<std::unique_ptr<RecordReader>> open(const std::filesystem::path& path,
                                                    const ReaderOptions& options);
  RecordReader(const RecordReader&) = delete;
  RecordReader& operator=(const RecordReader&) = delete;
  ~RecordReader();  // waits for what is under way; the rest is cancelled

  // Reads [offset, offset + size) of the file. Address, offset and size are multiples of 4096.
  // Guesses (not urgent) are begun only while nothing urgent is under way. A file that ends early
  // and an error of the system are errors, never zeros. Never calls `done` itself.
  uint64_t start(uint64_t offset, std::span<std::byte> destination, bool urgent, Done done);

  // A guess turned out to be wanted now.
  void hurry(uint64_t ticket);

  // Gives a guess up. True: nothing of it was under way, and `done` is not called.
  bool cancel(uint64_t ticket);

  // "io_uring, O_DIRECT, 16 x 1.0 MB".
  std::string description() const;

  uint64_t bytes_read() const;
  double busy_seconds() const;  // with at least one piece under way

 private:
  struct Read {
    uint64_t ticket = 0;
    uint64_t offset = 0;
    std::byte* destination = nullptr;
    uint64_t bytes = 0;
    uint64_t submitted = 0;
    int outstanding = 0;
    bool urgent = false;
    std::optional<Error> error;
    Done done;
  };

  explicit RecordReader(const ReaderOptions& options) : options_(options) {}
  void pump();
  bool submit_next(std::deque<Read*>& queue);
  void complete(BlockPiece* piece, int64_t result);
  void stop_submitting(Read& read);
  void account();

  ReaderOptions options_;
  std::filesystem::path path_;
  int fd_ = -1;
  bool direct_ = false;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::vector<BlockPiece> pieces_;
  std::vector<BlockPiece*> free_pieces_;
  std::unordered_map<uint64_t, std::unique_ptr<Read>> reads_;
  std::deque<Read*> urgent_, guesses_;  // those with pieces yet to be submitted
  int num_urgent_ = 0;                  // not yet complete
  int num_calls_ = 0;                   // of done, now
  uint64_t next_ticket_ = 1;
  uint64_t bytes_read_ = 0;
  bool closing_ = false;
  double busy_seconds_ = 0;
  std::optional<std::chrono::steady_clock::time_point> busy_since_;

  std::unique_ptr<BlockIo> io_;  // goes first: its threads use the rest
};

}  // namespace nibble
