// A device made of host memory whose copies run on a thread of their own.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "nibble/device/device.h"
#include "nibble/device/transfer_queue.h"
#include "nibble/offload/host_tier_loader.h"
#include "tests/offload/offload_fixture.h"

namespace nibble::testing {

class Gate {
 public:
  explicit Gate(bool is_open = false) : is_open_(is_open) {}
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++num_waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_; });
    --num_waiting_;
  }
  void wait_for_someone() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_;
  int num_waiting_ = 0;
};

// Copies in order, each some time later and behind the gate. The device's own work is the host's:
// whoever holds it until a copy waits, and a mark has always been reached.
class ThreadTransferQueue final : public TransferQueue {
 public:
  explicit ThreadTransferQueue(Gate* gate) : gate_(gate), thread_([this] { work(); }) {}
  ThreadTransferQueue(const ThreadTransferQueue&) = delete;
  ThreadTransferQueue& operator=(const ThreadTransferQueue&) = delete;
  ~ThreadTransferQueue() override {
    {
      const std::lock_guard lock(mutex_);
      EXPECT_EQ(done_, given_) << "copies from memory that is gone";
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  uint64_t mark() override {
    const std::lock_guard lock(mutex_);
    return ++marks_;
  }
  uint64_t copy(std::byte* destination, std::span<const std::byte> source,
                uint64_t after) override {
    const std::lock_guard lock(mutex_);
    EXPECT_LE(after, marks_);
    copies_.push_back({destination, source});
    changed_.notify_all();
    return ++given_;
  }
  void hold_device_until(uint64_t ticket) override { EXPECT_TRUE(wait(ticket)); }
  Status wait(uint64_t ticket) override {
    std::unique_lock lock(mutex_);
    EXPECT_LE(ticket, given_);
    changed_.wait(lock, [&] { return done_ >= ticket; });
    return {};
  }

 private:
  void work() {
    std::mt19937 rng(3);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stop_ || !copies_.empty(); });
      if (copies_.empty()) return;
      const auto [destination, source] = copies_.front();
      copies_.pop_front();
      lock.unlock();
      gate_->pass();
      // The first half early, the second late: who does not wait finds half an expert.
      const size_t half = source.size() / 2;
      std::memcpy(destination, source.data(), half);
      std::this_thread::sleep_for(std::chrono::microseconds(rng() % 200));
      std::memcpy(destination + half, source.data() + half, source.size() - half);
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  Gate* gate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<std::byte*, std::span<const std::byte>>> copies_;
  uint64_t marks_ = 0;
  uint64_t given_ = 0;
  uint64_t done_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

class CopyingDevice final : public Device {
 public:
  explicit CopyingDevice(bool is_open = true) : gate(is_open) {}
  Gate gate;  // of all copies

  std::string_view name() const override { return "a device of the test"; }
  Result<Buffer> allocate(size_t bytes) override { return host_->allocate(bytes); }
  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    return host_->copy_to_device(destination, source);
  }
  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    return host_->copy_to_host(destination, source);
  }
  Status synchronize() override { return {}; }
  Result<std::unique_ptr<TransferQueue>> make_transfer_queue(int /*num_streams*/) override {
    return std::unique_ptr<TransferQueue>(std::make_unique<ThreadTransferQueue>(&gate));
  }
  Result<DeviceMemory> memory() override { return host_->memory(); }
  bool is_host() const override { return true; }

 protected:
  void deallocate(void* /*data*/, size_t /*bytes*/) noexcept override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device();
};

inline CopyingDevice& copying_device() {
  static CopyingDevice device;
  return device;
}

// `ram` below a store in the device's memory.
inline std::unique_ptr<TieredStore> device_store(std::unique_ptr<ExpertLoader> loader,
                                                 int64_t device_records, int64_t ram_records,
                                                 TieredStoreOptions options = {},
                                                 HostExperts host_experts = HostExperts::kOff,
                                                 const HostExpertRates& rates = {}) {
  TieredStoreOptions below;
  below.memory_bytes = static_cast<uint64_t>(ram_records) * demo_record_bytes();
  below.allocate_slots = page_locked_slots(copying_device());
  auto ram = make_store(std::move(loader), std::move(below));
  auto from_ram = make_host_tier_loader(std::move(ram), copying_device(), 1, host_experts, rates);
  if (!from_ram) throw std::runtime_error(from_ram.error().message);
  options.memory_bytes = static_cast<uint64_t>(device_records) * demo_record_bytes();
  options.allocate_slots = device_slots(copying_device());
  options.on_device = true;
  return make_store(*std::move(from_ram), std::move(options));
}

}  // namespace nibble::testing
