// io_uring: whoever submits fills the submission queue, one thread waits for completions.
#include "nibble/base/error.h"
#include "nibble/offload/block_io.h"

#ifdef NIBBLE_HAVE_URING

#include <fmt/format.h>
#include <liburing.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>

#include "nibble/base/check.h"

namespace nibble {
namespace {

class UringIo final : public BlockIo {
 public:
  static Result<std::unique_ptr<BlockIo>> create(int fd, int depth, Completion completion) {
    std::unique_ptr<UringIo> io(new UringIo(std::move(completion)));
    // One entry more for the farewell.
    int rc = io_uring_queue_init(static_cast<unsigned>(depth) + 1, &io->ring_, 0);
    if (rc < 0) {
      return unsupported(fmt::format("io_uring is not to be had here: {}", std::strerror(-rc)));
    }
    io->open_ = true;
    rc = io_uring_register_files(&io->ring_, &fd, 1);
    if (rc < 0) {
      return unsupported(fmt::format("io_uring takes no files here: {}", std::strerror(-rc)));
    }
    io->reaper_ = std::thread([raw = io.get()] { raw->reap(); });
    return std::unique_ptr<BlockIo>(std::move(io));
  }

  ~UringIo() override {
    if (reaper_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
        NIBBLE_CHECK(sqe != nullptr);
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data(sqe, nullptr);
        send();
      }
      reaper_.join();
    }
    if (open_) io_uring_queue_exit(&ring_);
  }

  void submit(BlockPiece* piece) override {
    const std::lock_guard lock(mutex_);
    io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
    NIBBLE_CHECK(sqe != nullptr);
    io_uring_prep_read(sqe, 0, piece->destination, piece->bytes, piece->offset);
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, piece);
    send();
  }

  const char* name() const override { return "io_uring"; }

 private:
  explicit UringIo(Completion completion) : completion_(std::move(completion)) {}

  void send() {
    for (;;) {
      const int rc = io_uring_submit(&ring_);
      if (rc >= 0) return;
      // Short of memory or of room for completions: the reaper makes room.
      NIBBLE_CHECK(rc == -EAGAIN || rc == -EBUSY || rc == -EINTR);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  void reap() {
    for (;;) {
      io_uring_cqe* cqe = nullptr;
      const int rc = io_uring_wait_cqe(&ring_, &cqe);
      if (rc == -EINTR || rc == -EAGAIN) continue;
      NIBBLE_CHECK(rc == 0);
      auto* const piece = static_cast<BlockPiece*>(io_uring_cqe_get_data(cqe));
      const int64_t result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (piece == nullptr) return;
      completion_(piece, result);
    }
  }

  Completion completion_;
  std::mutex mutex_;  // guards the submission queue; completions are the reaper's alone
  io_uring ring_ = {};
  bool open_ = false;
  std::thread reaper_;
};

}  // namespace

Result<std::unique_ptr<BlockIo>> make_uring_io(int fd, int depth, BlockIo::Completion completion) {
  return UringIo::create(fd, depth, std::move(completion));
}

}  // namespace nibble

#else

namespace nibble {

Result<std::unique_ptr<BlockIo>> make_uring_io(int /*fd*/, int /*depth*/,
                                               BlockIo::Completion /*completion*/) {
  return unsupported("this build has no io_uring; install liburing-dev and configure again");
}

}  // namespace nibble

#endif
