// BF16 copies of matrices that lie in a GPU's memory in binary32: whoever writes such a matrix may
// leave one beside it, and a product that would round it anyway takes that.
//
// A copy is found as long as nobody but its writer can have written the matrix since: those who
// write matrices as operations of a pass tell (forget()), and whatever else writes memory of the
// device, or lets the host write it, makes all copies void (CudaDevice's copies, synchronize() and
// deallocation, collectives, replays of recorded work). Where one is missing a product converts
// what it reads, with the same bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "nibble/device/device.h"

namespace nibble {

// Rows of a copy, contiguous in each part: value = part 0 + part 1 + part 2 as far as there are
// parts, each rounded to nearest of what the ones before left. data null: there is none.
struct Bf16Copy {
  uint16_t* data = nullptr;
  int64_t row_stride = 0;   // elements
  int64_t part_stride = 0;  // elements
  int parts = 0;
};

// How many parts the copy of a norm behind a sum has: more tokens than these are routed by a
// product of three.
constexpr int64_t kRoutedAsTheyAre = 8;
constexpr int norm_copy_parts(int64_t rows) { return rows > kRoutedAsTheyAre ? 3 : 1; }

// Used from the thread that launches the device's work, but for make_void().
class Bf16Copies {
 public:
  explicit Bf16Copies(Device& device) : device_(&device) {}

  // Off at first: then there are none.
  void set_enabled(bool enabled) { enabled_ = enabled; }

  // The rows [rows, cols], row_stride floats apart, are about to be written by one launch, which
  // fills the copy, too: what is known of that memory is forgotten, and the copy may be found from
  // now on. data null where none is to be made: off, more rows or kinds of matrices than there is
  // room for, or columns that are no multiple of 128 (products read whole units of columns).
  Bf16Copy make(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride, int parts = 1);

  // The rows were written, or will be by the next launch, without a copy.
  void forget(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride);

  // Of rows of a matrix that has one of at least so many parts.
  Bf16Copy find(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride,
                int parts) const;

  // How often find() had one: of the work that was launched, not of what was replayed.
  int64_t num_found() const { return num_found_; }

  // Gives all memory back.
  void clear() {
    entries_.clear();
    rooms_.clear();
  }

  // Anything may have been written. Thread-safe.
  void make_void() { writes_.fetch_add(1, std::memory_order_relaxed); }

 private:
  // Memory for copies of so many columns and parts, made for the most rows at once, so that its
  // address stays: recorded work has it.
  struct Room {
    int64_t cols = 0;
    int parts = 0;
    Buffer memory;
  };
  struct Entry {
    const float* matrix = nullptr;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t row_stride = 0;
    uint64_t writes = 0;  // as they stood
    Bf16Copy copy;

    const float* end() const { return matrix + (rows - 1) * row_stride + cols; }
  };
  uint16_t* room(int64_t cols, int parts);

  Device* device_;
  bool enabled_ = false;
  std::vector<Room> rooms_;
  std::vector<Entry> entries_;  // at most one in each room
  std::atomic<uint64_t> writes_{0};
  mutable int64_t num_found_ = 0;
};

// `device` was made by make_cuda_device.
Bf16Copies& bf16_copies(Device& device);

}  // namespace nibble
