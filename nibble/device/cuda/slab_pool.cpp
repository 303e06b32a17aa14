#include "nibble/device/cuda/slab_pool.h"

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kFirstSlab = size_t{16} << 20;
constexpr size_t kSlab = size_t{256} << 20;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

SlabPool::~SlabPool() {
  for (const auto& [data, slab] : slabs_) give_(data);
}

void* SlabPool::allocate(size_t bytes) {
  const size_t wanted = aligned(bytes);
  const std::lock_guard lock(mutex_);
  if (current_ != nullptr) {
    Slab& slab = slabs_.at(current_);
    if (slab.next + wanted <= slab.size) {
      std::byte* const data = current_ + slab.next;
      slab.next += wanted;
      slab.used += wanted;
      ++slab.pieces;
      return data;
    }
  }
  // What does not fit often gets a slab of its own and leaves the current one open.
  const size_t size = std::max(wanted, slabs_.empty() ? kFirstSlab : kSlab);
  auto* data = static_cast<std::byte*>(take_(size));
  const size_t got = data != nullptr ? size : wanted;
  if (data == nullptr) data = static_cast<std::byte*>(take_(wanted));  // the last bytes
  if (data == nullptr) return nullptr;
  slabs_[data] = {got, wanted, wanted, 1};
  if (got > wanted) current_ = data;
  return data;
}

bool SlabPool::deallocate(void* data, size_t bytes) {
  const std::lock_guard lock(mutex_);
  auto* const at = static_cast<std::byte*>(data);
  auto found = slabs_.upper_bound(at);
  if (found == slabs_.begin()) return false;
  found = std::prev(found);
  if (at >= found->first + found->second.size) return false;
  found->second.used -= aligned(bytes);
  if (--found->second.pieces > 0) return true;
  if (current_ == found->first) current_ = nullptr;
  give_(found->first);
  slabs_.erase(found);
  return true;
}

uint64_t SlabPool::unused_bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t unused = 0;
  for (const auto& [data, slab] : slabs_) unused += slab.size - slab.used;
  return unused;
}

}  // namespace nibble
