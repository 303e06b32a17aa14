// Reading pieces of a file without waiting for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "nibble/base/result.h"

namespace nibble {

// Part of a read. Stays the caller's, and where it is, until it completes.
struct BlockPiece {
  uint64_t offset = 0;  // in the file
  std::byte* destination = nullptr;
  uint32_t bytes = 0;
  void* owner = nullptr;  // the caller's own
};

// Implementations: io_uring, and threads that call pread.
class BlockIo {
 public:
  // Called on a thread of the BlockIo: bytes that were read (fewer than asked, also 0, at the end
  // of the file), or -errno. It may submit.
  using Completion = std::function<void(BlockPiece* piece, int64_t result)>;

  virtual ~BlockIo() = default;  // nothing may be under way

  // Begins a read. One caller at a time; at most `depth` pieces may be under way.
  virtual void submit(BlockPiece* piece) = 0;

  virtual const char* name() const = 0;
};

// `fd` must outlive the result. Errors: kUnsupported where the build or the kernel has no io_uring,
// or a container forbids it.
Result<std::unique_ptr<BlockIo>> make_uring_io(int fd, int depth, BlockIo::Completion completion);
std::unique_ptr<BlockIo> make_pread_io(int fd, int depth, BlockIo::Completion completion);

}  // namespace nibble
