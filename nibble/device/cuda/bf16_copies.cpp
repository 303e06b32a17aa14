#include "nibble/device/cuda/bf16_copies.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// Steps of more rows convert: what that takes is little beside their products.
constexpr int64_t kMostRows = 512;
// Kinds of matrices (columns and parts): a model has about five.
constexpr size_t kMostRooms = 12;
constexpr int64_t kUnitCols = 128;

}  // namespace

uint16_t* Bf16Copies::room(int64_t cols, int parts) {
  for (const Room& room : rooms_) {
    if (room.cols == cols && room.parts == parts) return room.memory.as<uint16_t>();
  }
  if (rooms_.size() == kMostRooms) return nullptr;
  auto memory = device_->allocate(static_cast<size_t>(parts * kMostRows * cols) * sizeof(uint16_t));
  Room room{cols, parts, Buffer()};
  if (memory) room.memory = *std::move(memory);
  return rooms_.emplace_back(std::move(room)).memory.as<uint16_t>();
}

Bf16Copy Bf16Copies::make(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride,
                          int parts) {
  forget(matrix, rows, cols, row_stride);
  if (!enabled_ || rows == 0 || cols % kUnitCols != 0) return {};
  // Made by the largest step, too, which the cache's size is measured by.
  uint16_t* const data = room(cols, parts);
  if (data == nullptr || rows > kMostRows) return {};
  std::erase_if(entries_, [&](const Entry& entry) { return entry.copy.data == data; });
  const Bf16Copy copy{data, cols, kMostRows * cols, parts};
  entries_.push_back({matrix, rows, cols, row_stride, writes_.load(), copy});
  return copy;
}

void Bf16Copies::forget(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride) {
  if (rows == 0) return;
  const Entry written{matrix, rows, cols, row_stride, 0, {}};
  std::erase_if(entries_, [&](const Entry& entry) {
    return written.matrix < entry.end() && entry.matrix < written.end();
  });
}

Bf16Copy Bf16Copies::find(const float* matrix, int64_t rows, int64_t cols, int64_t row_stride,
                          int parts) const {
  for (const Entry& entry : entries_) {
    if (entry.writes != writes_.load() || entry.copy.parts < parts || entry.cols != cols) continue;
    if (matrix < entry.matrix || matrix >= entry.end()) continue;
    const int64_t at = matrix - entry.matrix;
    const bool same_rows = entry.row_stride == row_stride || (rows == 1 && at == 0);
    if (!same_rows || at % entry.row_stride != 0) continue;
    const int64_t first = at / entry.row_stride;
    if (first + rows > entry.rows) continue;
    Bf16Copy copy = entry.copy;
    copy.data += first * copy.row_stride;
    ++num_found_;
    return copy;
  }
  return {};
}

}  // namespace nibble
