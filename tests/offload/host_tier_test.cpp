// The way from the host's memory to a device's, with a device made of host memory whose copies run
// on a thread of their own: order, leases and tiers as a GPU would have them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "nibble/offload/host_tier_loader.h"
#include "tests/offload/offload_runs.h"

namespace nibble {
namespace {

using testing::run_requests;
using testing::Tiered;

// Copies in order, each some time later. The device's own work is the host's: whoever holds it
// until a copy waits, and a mark has always been reached.
class ThreadTransferQueue final : public TransferQueue {
 public:
  ThreadTransferQueue() : thread_([this] { work(); }) {}
  ThreadTransferQueue(const ThreadTransferQueue&) = delete;
  ThreadTransferQueue& operator=(const ThreadTransferQueue&) = delete;
  ~ThreadTransferQueue() override {
    {
      const std::lock_guard lock(mutex_);
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
    return std::unique_ptr<TransferQueue>(std::make_unique<ThreadTransferQueue>());
  }
  Result<DeviceMemory> memory() override { return host_->memory(); }
  bool is_host() const override { return true; }

 protected:
  void deallocate(void* /*data*/, size_t /*bytes*/) noexcept override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device();
};

CopyingDevice& copying_device() {
  static CopyingDevice device;
  return device;
}

std::unique_ptr<TieredStore> two_tiers(std::unique_ptr<ExpertLoader> loader, int64_t device_records,
                                       int64_t ram_records, TieredStoreOptions options = {}) {
  TieredStoreOptions below;
  below.memory_bytes = static_cast<uint64_t>(ram_records) * testing::demo_record_bytes();
  below.allocate_slots = page_locked_slots(copying_device());
  auto ram = testing::make_store(std::move(loader), std::move(below));
  auto from_ram = make_host_tier_loader(std::move(ram), copying_device(), 1);
  if (!from_ram) throw std::runtime_error(from_ram.error().message);
  options.memory_bytes = static_cast<uint64_t>(device_records) * testing::demo_record_bytes();
  options.allocate_slots = device_slots(copying_device());
  options.on_device = true;
  return testing::make_store(*std::move(from_ram), std::move(options));
}

constexpr int64_t kHostTierExperts = 4 * 16;

struct Tiers {
  int64_t device_records;
  int64_t ram_records;
};

class HostTierEquality : public ::testing::TestWithParam<Tiers> {};

TEST_P(HostTierEquality, TokensAreThoseOfTheModelInMemory) {
  const auto [device_records, ram_records] = GetParam();
  for (const int64_t batch : {int64_t{1}, int64_t{4}}) {
    for (const int64_t drafts : {int64_t{0}, int64_t{2}}) {
      SCOPED_TRACE("batch " + std::to_string(batch) + ", drafts " + std::to_string(drafts));
      Tiered tiered(
          two_tiers(testing::packed_loader(testing::packed_demo()), device_records, ram_records));
      EXPECT_EQ(run_requests(tiered.model(), batch, drafts).outputs,
                testing::plain_run(drafts).outputs);
      const ExpertStoreStats stats = tiered.store().stats();
      EXPECT_EQ(stats.num_slots, device_records);
      EXPECT_EQ(stats.below.num_slots, ram_records);
      const bool all_there = device_records == kHostTierExperts;
      // With all of them there nobody asks, and nothing is counted.
      EXPECT_EQ(stats.num_steps == 0, all_there);
      EXPECT_EQ(stats.num_misses == 0, all_there);
      EXPECT_EQ(stats.num_evictions == 0, all_there);
      EXPECT_EQ(tiered.store().resident(1).empty(), !all_there);
      const auto record = static_cast<int64_t>(testing::demo_record_bytes());
      EXPECT_EQ(stats.bytes_read % record, 0);
      const int64_t copied = stats.bytes_read / record;
      const int64_t fetched = stats.below.num_hits + stats.below.num_misses;
      EXPECT_GE(fetched, copied);
      EXPECT_LE(fetched, copied + 1);  // a last guess may be under way
      if (all_there) {
        EXPECT_EQ(copied, kHostTierExperts);
      }
      if (ram_records == kHostTierExperts) {
        EXPECT_EQ(stats.below.num_misses, 0);
        EXPECT_EQ(stats.below.bytes_read, kHostTierExperts * record);
      } else {
        EXPECT_GT(stats.below.num_misses, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Residency, HostTierEquality,
                         ::testing::Values(Tiers{kHostTierExperts, 8}, Tiers{32, 64}, Tiers{32, 40},
                                           Tiers{6, 64}, Tiers{4, 8}, Tiers{4, 1}, Tiers{1, 1}));

TEST(HostTier, EveryPolicyWithPinnedExpertsGivesTheSameTokens) {
  for (const EvictionKind kind : {EvictionKind::kLfu, EvictionKind::kLru, EvictionKind::kScore}) {
    for (const int prefetch_layers : {0, 1}) {
      TieredStoreOptions options;
      options.eviction.kind = kind;
      options.prefetch_layers = prefetch_layers;
      options.hot_experts = {{1, 3}, {1, 4}, {2, 0}, {4, 15}};
      Tiered tiered(two_tiers(testing::checkpoint_loader(), 20, 30, std::move(options)));
      EXPECT_EQ(run_requests(tiered.model(), 2, 1).outputs, testing::plain_run(1).outputs)
          << eviction_kind_name(kind);
      const ExpertStoreStats stats = tiered.store().stats();
      EXPECT_EQ(stats.num_guesses == 0, prefetch_layers == 0);
      EXPECT_LE(stats.num_guesses_used + stats.num_guesses_late + stats.num_guesses_wasted,
                stats.num_guesses);
    }
  }
}

TEST(HostTier, ADamagedRecordFailsItsRequestsByNameAndNoOther) {
  const auto path = testing::copy_of_packed_demo("host_tier_flipped.nibble");
  const auto place = ExpertFile::open(path)->find(2, 5)->offset;
  testing::flip_byte(path, place + kExpertAlignment + 100);
  const auto store = two_tiers(testing::packed_loader(path), 8, 8);
  const auto acquire_one = [&](int32_t expert) {
    const ExpertUse use{expert, 1, 1.0f};
    store->announce(2, std::span(&use, 1), 1);
    return store->acquire(2, std::span(&expert, 1));
  };
  for (int round = 0; round < 2; ++round) {
    const auto bad = acquire_one(5);
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(bad.error().message, ::testing::HasSubstr("layer 2 expert 5"));
    EXPECT_TRUE(acquire_one(4));
  }
}

TEST(HostTier, TheDevicesRoomStaysAsItIs) {
  const auto store = two_tiers(testing::packed_loader(testing::packed_demo()), 8, 8);
  EXPECT_EQ(store->set_memory(uint64_t{1} << 30).error().code, ErrorCode::kUnsupported);
}

TEST(HostTier, ADeviceWithoutCopiesOfItsOwnIsRefused) {
  const auto host = make_host_device();
  TieredStoreOptions options;
  options.memory_bytes = 8 * testing::demo_record_bytes();
  auto ram =
      testing::make_store(testing::packed_loader(testing::packed_demo()), std::move(options));
  const auto loader = make_host_tier_loader(std::move(ram), *host, 1);
  ASSERT_FALSE(loader);
  EXPECT_EQ(loader.error().code, ErrorCode::kUnsupported);
}

// Stores that go while reads, copies and guesses are under way.
TEST(HostTier, ClosesAtAnyTime) {
  for (int i = 0; i < 30; ++i) {
    const auto store = two_tiers(testing::packed_loader(testing::packed_demo()), 12, 3 + i % 10);
    std::vector<ExpertUse> uses;
    for (int32_t e = 0; e < 1 + i % 12; ++e) uses.push_back({e, 1, 1.0f});
    store->prefetch(2, uses);
    store->announce(1, uses, 1);
    if (i % 3 == 0) continue;
    std::vector<int32_t> wanted;
    for (const ExpertUse& use : uses) wanted.push_back(use.expert);
    const auto lease = store->acquire(1, wanted);
    ASSERT_TRUE(lease);
    EXPECT_FALSE(lease->ids().empty());
  }
}

}  // namespace
}  // namespace nibble
