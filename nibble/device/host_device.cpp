#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/device/device.h"

namespace nibble {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kHugePage = size_t{2} << 20;

// Small buffers come from the heap; large ones from mmap, so that their pages are touched first by
// the thread that fills them and return to the system when freed.
bool is_large(size_t bytes) { return bytes >= kHugePage; }

class HostDevice final : public Device {
 public:
  std::string_view name() const override { return "host"; }

  Result<Buffer> allocate(size_t bytes) override {
    if (bytes == 0) return Buffer();
    void* data = nullptr;
    if (is_large(bytes)) {
      data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) data = nullptr;
      if (data != nullptr) (void)::madvise(data, bytes, MADV_HUGEPAGE);
    } else {
      const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      data = std::aligned_alloc(kAlignment, rounded);
    }
    if (data == nullptr) {
      return out_of_memory(fmt::format("cannot allocate {} of host memory; {} are available",
                                       format_bytes(bytes),
                                       format_bytes(memory_info().available_bytes)));
    }
    return Buffer(this, data, bytes);
  }

  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    if (!source.empty()) std::memcpy(destination, source.data(), source.size());
    return {};
  }

  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    if (!destination.empty()) std::memcpy(destination.data(), source, destination.size());
    return {};
  }

  Status synchronize() override { return {}; }

  Result<DeviceMemory> memory() override {
    const MemoryInfo info = memory_info();
    return DeviceMemory{info.total_bytes, info.available_bytes};
  }

  bool is_host() const override { return true; }

 protected:
  void deallocate(void* data, size_t bytes) noexcept override {
    if (is_large(bytes)) {
      ::munmap(data, bytes);
    } else {
      std::free(data);
    }
  }
};

}  // namespace

std::unique_ptr<Device> make_host_device() { return std::make_unique<HostDevice>(); }

}  // namespace nibble
