// Which rows of a DeviceSampler's kept weights belong to drafts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace nibble {

// The number of a row that its owners share. It is free again when the last of them is gone.
using WeightRow = std::shared_ptr<const int64_t>;

// Not thread-safe. Rows may outlive it.
class WeightRows {
 public:
  // Rows 0 .. count - 1.
  explicit WeightRows(int64_t count) : free_(std::make_shared<std::vector<int64_t>>()) {
    for (int64_t row = count; row > 0; --row) free_->push_back(row - 1);
  }

  // Null when all are taken.
  WeightRow take() {
    if (free_->empty()) return nullptr;
    auto row = std::make_unique<const int64_t>(free_->back());
    free_->pop_back();
    return {row.release(), [free = free_](const int64_t* freed) {
              free->push_back(*freed);
              delete freed;
            }};
  }

  int64_t num_free() const { return static_cast<int64_t>(free_->size()); }

 private:
  std::shared_ptr<std::vector<int64_t>> free_;
};

}  // namespace nibble
