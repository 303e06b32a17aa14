#include "nibble/offload/record_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/offload/expert_format.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Guesses leave room for what may be wanted meanwhile: a disk finishes what it has begun.
constexpr int kGuessDepth = 4;

// Whether reads with O_DIRECT work; some file systems take the flag and refuse the read.
bool reads_directly(int fd) {
  void* const page = std::aligned_alloc(kExpertAlignment, kExpertAlignment);
  if (page == nullptr) return false;
  const ssize_t n = ::pread(fd, page, kExpertAlignment, 0);
  std::free(page);
  return n >= 0;
}

}  // namespace

Result<IoBackend> parse_io_backend(std::string_view name) {
  if (name == "auto") return IoBackend::kAuto;
  if (name == "uring") return IoBackend::kUring;
  if (name == "pread") return IoBackend::kPread;
  if (name == "buffered") return IoBackend::kBuffered;
  const std::vector<std::string> names = {"auto", "uring", "pread", "buffered"};
  const std::string why = name == "mmap"
                              ? "; a mapped file turns a failing disk into a dead process"
                              : did_you_mean(name, names);
  return invalid_argument(
      fmt::format("--io is '{}', expected auto, uring, pread or buffered{}", name, why));
}

Result<std::unique_ptr<RecordReader>> RecordReader::open(const std::filesystem::path& path,
                                                         const ReaderOptions& options) {
  if (options.depth < 1 || options.depth > 256) {
    return invalid_argument(fmt::format("--io-depth is {}, expected 1..256", options.depth));
  }
  NIBBLE_CHECK(options.piece_bytes > 0 && options.piece_bytes % kExpertAlignment == 0);
  std::unique_ptr<RecordReader> reader(new RecordReader(options));
  reader->path_ = path;
  if (options.backend != IoBackend::kBuffered) {
    reader->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    reader->direct_ = reader->fd_ >= 0 && reads_directly(reader->fd_);
  }
  if (!reader->direct_) {
    if (reader->fd_ >= 0) ::close(reader->fd_);
    reader->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (reader->fd_ < 0) return system_error("cannot open " + path.string(), errno);
  }
  reader->pieces_.resize(static_cast<size_t>(options.depth));
  for (BlockPiece& piece : reader->pieces_) reader->free_pieces_.push_back(&piece);

  const BlockIo::Completion completion = [raw = reader.get()](BlockPiece* piece, int64_t result) {
    raw->complete(piece, result);
  };
  if (options.backend == IoBackend::kAuto || options.backend == IoBackend::kUring) {
    auto io = make_uring_io(reader->fd_, options.depth, completion);
    if (io) {
      reader->io_ = *std::move(io);
    } else if (options.backend == IoBackend::kUring) {
      return tl::unexpected(std::move(io).error());
    } else {
      log_debug(io.error().message + "; pread instead");
    }
  }
  if (reader->io_ == nullptr) {
    reader->io_ = make_pread_io(reader->fd_, options.depth, completion);
  }
  return reader;
}

RecordReader::~RecordReader() {
  if (io_ != nullptr) {
    std::unique_lock lock(mutex_);
    closing_ = true;
    for (auto* queue : {&urgent_, &guesses_}) {
      while (!queue->empty()) {
        Read* const read = queue->front();
        stop_submitting(*read);
        if (read->outstanding == 0) reads_.erase(read->ticket);
      }
    }
    idle_.wait(lock, [&] { return reads_.empty() && num_calls_ == 0; });
    lock.unlock();
    io_.reset();
  }
  if (fd_ >= 0) ::close(fd_);
}

uint64_t RecordReader::start(uint64_t offset, std::span<std::byte> destination, bool urgent,
                             Done done) {
  NIBBLE_CHECK(!destination.empty() && destination.size() % kExpertAlignment == 0);
  NIBBLE_CHECK(reinterpret_cast<uintptr_t>(destination.data()) % kExpertAlignment == 0);
  const std::lock_guard lock(mutex_);
  auto owned = std::make_unique<Read>();
  Read* const read = owned.get();
  read->ticket = next_ticket_++;
  read->offset = offset;
  read->destination = destination.data();
  read->bytes = destination.size();
  read->urgent = urgent;
  read->done = std::move(done);
  reads_.emplace(read->ticket, std::move(owned));
  (urgent ? urgent_ : guesses_).push_back(read);
  num_urgent_ += urgent ? 1 : 0;
  pump();
  return read->ticket;
}

void RecordReader::hurry(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  const auto found = reads_.find(ticket);
  if (found == reads_.end() || found->second->urgent) return;
  Read* const read = found->second.get();
  read->urgent = true;
  ++num_urgent_;
  const auto queued = std::find(guesses_.begin(), guesses_.end(), read);
  if (queued == guesses_.end()) return;
  guesses_.erase(queued);
  urgent_.push_back(read);
  pump();
}

bool RecordReader::cancel(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  const auto found = reads_.find(ticket);
  if (found == reads_.end() || found->second->urgent) return false;
  Read& read = *found->second;
  if (read.submitted == read.bytes) return false;  // it is as good as there
  stop_submitting(read);
  if (read.outstanding > 0) {
    read.error = Error{ErrorCode::kCancelled, "no longer wanted"};
    return false;
  }
  reads_.erase(found);
  return true;
}

void RecordReader::stop_submitting(Read& read) {
  if (read.submitted < read.bytes) std::erase(read.urgent ? urgent_ : guesses_, &read);
  read.submitted = read.bytes;
}

// Called with the lock held.
void RecordReader::pump() {
  while (!free_pieces_.empty() && submit_next(urgent_)) {
  }
  const auto under_way = [&] { return pieces_.size() - free_pieces_.size(); };
  while (num_urgent_ == 0 && !free_pieces_.empty() &&
         under_way() < static_cast<size_t>(kGuessDepth) && submit_next(guesses_)) {
  }
  account();
}

bool RecordReader::submit_next(std::deque<Read*>& queue) {
  if (queue.empty()) return false;
  Read* const read = queue.front();
  BlockPiece* const piece = free_pieces_.back();
  free_pieces_.pop_back();
  piece->offset = read->offset + read->submitted;
  piece->destination = read->destination + read->submitted;
  piece->bytes = static_cast<uint32_t>(
      std::min<uint64_t>(options_.piece_bytes, read->bytes - read->submitted));
  piece->owner = read;
  read->submitted += piece->bytes;
  ++read->outstanding;
  if (read->submitted == read->bytes) queue.pop_front();
  io_->submit(piece);
  return true;
}

void RecordReader::account() {
  const bool busy = free_pieces_.size() < pieces_.size();
  if (busy == busy_since_.has_value()) return;
  if (busy) {
    busy_since_ = Clock::now();
  } else {
    busy_seconds_ += std::chrono::duration<double>(Clock::now() - *busy_since_).count();
    busy_since_.reset();
  }
}

void RecordReader::complete(BlockPiece* piece, int64_t result) {
  std::unique_ptr<Read> finished;
  {
    const std::lock_guard lock(mutex_);
    Read& read = *static_cast<Read*>(piece->owner);
    if (result > 0) bytes_read_ += static_cast<uint64_t>(result);
    if (result > 0 && result < piece->bytes &&
        result % static_cast<int64_t>(kExpertAlignment) == 0) {
      piece->offset += static_cast<uint64_t>(result);
      piece->destination += result;
      piece->bytes -= static_cast<uint32_t>(result);
      io_->submit(piece);
      return;
    }
    if (result != piece->bytes) {
      const auto failure =
          result < 0
              ? system_error(fmt::format("cannot read {} at {}", path_.string(), piece->offset),
                             static_cast<int>(-result))
              : corrupt(fmt::format("{} ends at {}: it was cut short", path_.string(),
                                    piece->offset + static_cast<uint64_t>(result)));
      if (!read.error) read.error = failure.value();
      stop_submitting(read);
    }
    free_pieces_.push_back(piece);
    if (--read.outstanding == 0 && read.submitted == read.bytes) {
      const auto found = reads_.find(read.ticket);
      finished = std::move(found->second);
      reads_.erase(found);
      num_urgent_ -= finished->urgent ? 1 : 0;
      ++num_calls_;
    }
    pump();
  }
  if (finished == nullptr) return;
  finished->done(finished->error ? Status(tl::unexpected(*std::move(finished->error))) : Status());
  const std::lock_guard lock(mutex_);
  --num_calls_;
  if (closing_) idle_.notify_all();
}

std::string RecordReader::description() const {
  return fmt::format("{}, {}, {} x {}", io_->name(), direct_ ? "O_DIRECT" : "page cache",
                     options_.depth, format_bytes(options_.piece_bytes));
}

uint64_t RecordReader::bytes_read() const {
  const std::lock_guard lock(mutex_);
  return bytes_read_;
}

double RecordReader::busy_seconds() const {
  const std::lock_guard lock(mutex_);
  double seconds = busy_seconds_;
  if (busy_since_) seconds += std::chrono::duration<double>(Clock::now() - *busy_since_).count();
  return seconds;
}

}  // namespace nibble
