// One thread for each piece that may be under way, up to 16: pread waits in the kernel.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "nibble/offload/block_io.h"

namespace nibble {
namespace {

constexpr int kMaxThreads = 16;

class PreadIo final : public BlockIo {
 public:
  PreadIo(int fd, int depth, Completion completion) : fd_(fd), completion_(std::move(completion)) {
    for (int i = 0; i < std::min(depth, kMaxThreads); ++i)
      threads_.emplace_back([this] { work(); });
  }
  ~PreadIo() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void submit(BlockPiece* piece) override {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(piece);
    }
    wake_.notify_one();
  }

  const char* name() const override { return "pread"; }

 private:
  void work() {
    for (;;) {
      BlockPiece* piece = nullptr;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
        if (queue_.empty()) return;
        piece = queue_.front();
        queue_.pop_front();
      }
      ssize_t n = 0;
      do {
        n = ::pread(fd_, piece->destination, piece->bytes, static_cast<off_t>(piece->offset));
      } while (n < 0 && errno == EINTR);
      completion_(piece, n < 0 ? -int64_t{errno} : int64_t{n});
    }
  }

  int fd_;
  Completion completion_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<BlockPiece*> queue_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<BlockIo> make_pread_io(int fd, int depth, BlockIo::Completion completion) {
  return std::make_unique<PreadIo>(fd, depth, std::move(completion));
}

}  // namespace nibble
