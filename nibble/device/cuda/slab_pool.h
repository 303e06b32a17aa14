// Many small allocations out of few large ones: a model has tens of thousands of weights, and each
// cudaMalloc takes its time and whole pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>

namespace nibble {

// Gives pieces of slabs, one behind the other; a slab goes back when its last piece does. Meant for
// memory that is taken together and freed together. Thread-safe.
class SlabPool {
 public:
  // `take` gives device memory of so many bytes or null; `give` takes it back.
  SlabPool(std::function<void*(size_t)> take, std::function<void(void*)> give)
      : take_(std::move(take)), give_(std::move(give)) {}
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  // Aligned to 256 bytes; null when there is no memory. bytes > 0.
  void* allocate(size_t bytes);

  // Whether `data` came from here, and takes it back then.
  bool deallocate(void* data, size_t bytes);

  // Bytes of slabs that no piece has.
  uint64_t unused_bytes() const;

 private:
  struct Slab {
    size_t size = 0;
    size_t next = 0;  // where the next piece begins
    size_t used = 0;  // bytes of pieces that live
    size_t pieces = 0;
  };

  std::function<void*(size_t)> take_;
  std::function<void(void*)> give_;
  mutable std::mutex mutex_;
  std::map<std::byte*, Slab> slabs_;  // by address
  std::byte* current_ = nullptr;
};

}  // namespace nibble
