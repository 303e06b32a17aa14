// The way from the host's memory to a device's, with a device made of host memory whose copies run
// on a thread of their own: order, leases and tiers as a GPU would have them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <future>
#include <mutex>
#include <random>
#include <thread>

#include "nibble/offload/host_tier_loader.h"
#include "nibble/offload/slot_memory.h"
#include "tests/offload/copying_device.h"
#include "tests/offload/offload_runs.h"

namespace nibble {
namespace {

using testing::run_requests;
using testing::Tiered;

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
      Tiered tiered(testing::device_store(testing::packed_loader(testing::packed_demo()),
                                          device_records, ram_records));
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
      Tiered tiered(
          testing::device_store(testing::checkpoint_loader(), 20, 30, std::move(options)));
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
  const auto store = testing::device_store(testing::packed_loader(path), 8, 8);
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
  const auto store = testing::device_store(testing::packed_loader(testing::packed_demo()), 8, 8);
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
    const auto store =
        testing::device_store(testing::packed_loader(testing::packed_demo()), 12, 3 + i % 10);
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

// Stores that go at the moment in which reads end: a copy from memory that goes with them must not
// begin (ThreadTransferQueue looks).
TEST(HostTier, ClosesWhileReadsEnd) {
  for (int i = 0; i < 80; ++i) {
    const auto store =
        testing::device_store(testing::packed_loader(testing::packed_demo()), 12, 12);
    std::vector<ExpertUse> uses;
    for (int32_t e = 0; e < 12; ++e) uses.push_back({e, 1, 1.0f});
    store->announce(1 + i % 3, uses, 1);
    std::this_thread::sleep_for(std::chrono::microseconds(20 * (i % 40)));
  }
}

// Passes on; tells what was begun, and holds the start of one expert.
class ToldLoader final : public ExpertLoader {
 public:
  ToldLoader(std::unique_ptr<ExpertLoader> inner, testing::Gate* gate, int held_layer)
      : inner_(std::move(inner)), gate_(gate), held_layer_(held_layer) {}
  uint64_t record_bytes(int layer, int expert) const override {
    return inner_->record_bytes(layer, expert);
  }
  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    if (layer == held_layer_) gate_->pass();
    num_urgent += urgent ? 1 : 0;
    return inner_->start(layer, expert, destination, urgent, std::move(done));
  }
  void hurry(uint64_t ticket) override {
    ++num_urgent;
    inner_->hurry(ticket);
  }
  bool cancel(uint64_t ticket) override { return inner_->cancel(ticket); }
  uint64_t bytes_read() const override { return inner_->bytes_read(); }
  double busy_seconds() const override { return inner_->busy_seconds(); }
  std::string description() const override { return "told"; }

  std::atomic<int> num_urgent{0};

 private:
  std::unique_ptr<ExpertLoader> inner_;
  testing::Gate* gate_;
  int held_layer_;
};

std::unique_ptr<TieredStore> ram_of(std::unique_ptr<ExpertLoader> loader) {
  TieredStoreOptions options;
  options.memory_bytes = 8 * testing::demo_record_bytes();
  return testing::make_store(std::move(loader), std::move(options));
}

// A guess that is wanted while it is being asked of the store in RAM.
TEST(HostTier, AHurryIsNeverLost) {
  auto memory = SlotMemory::allocate(testing::demo_record_bytes()).value();
  for (int i = 0; i < 20; ++i) {
    testing::Gate gate;
    auto told = std::make_unique<ToldLoader>(testing::packed_loader(testing::packed_demo()), &gate,
                                             /*held_layer=*/1);
    std::atomic<int>& num_urgent = told->num_urgent;
    auto ram = ram_of(std::move(told));
    TieredStore& store = *ram;
    const auto loader = make_host_tier_loader(std::move(ram), testing::copying_device(), 1).value();
    std::promise<void> other;
    std::promise<Status> came;
    // Whoever asks the store in RAM waits until the gate opens.
    std::thread holder(
        [&] { EXPECT_FALSE(store.fetch(1, 0, true, [&](const auto&) { other.set_value(); })); });
    gate.wait_for_someone();
    const uint64_t guess =
        loader->start(2, 3, memory.bytes(), false, [&](Status s) { came.set_value(std::move(s)); });
    std::this_thread::sleep_for(std::chrono::microseconds(100 * i));
    std::atomic<bool> hurries = false;
    std::thread hurrier([&] {
      hurries = true;
      loader->hurry(guess);
    });
    // Nothing tells when it waits inside; a busy machine takes a while to start a thread.
    while (!hurries) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    gate.open();
    hurrier.join();
    holder.join();
    EXPECT_TRUE(came.get_future().get());
    other.get_future().wait();
    EXPECT_GE(num_urgent, 2);  // the holder's and the guess's
  }
}

// What is wanted now and was in RAM after all goes to the copies at once, and ends while another
// copy is under way.
TEST(HostTier, AnUrgentExpertWaitsForNoOtherCopy) {
  auto memory = SlotMemory::allocate(2 * testing::demo_record_bytes()).value();
  testing::CopyingDevice device(/*is_open=*/false);
  auto ram = ram_of(testing::packed_loader(testing::packed_demo()));
  for (const int32_t expert : {0, 1}) {
    const ExpertUse use{expert, 1, 1.0f};
    ram->announce(1, std::span(&use, 1), 1);
    ASSERT_TRUE(ram->acquire(1, std::span(&expert, 1)));
  }
  const auto loader = make_host_tier_loader(std::move(ram), device, 1).value();
  const auto place = [&](size_t i) {
    return memory.bytes().subspan(i * testing::demo_record_bytes(), testing::demo_record_bytes());
  };
  ASSERT_TRUE(loader->start_at_hand(1, 0, place(0)));
  device.gate.wait_for_someone();
  std::promise<Status> came;
  loader->start(1, 1, place(1), true, [&](Status s) { came.set_value(std::move(s)); });
  auto future = came.get_future();
  EXPECT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  EXPECT_EQ(loader->bytes_read(), 2 * testing::demo_record_bytes());
  device.gate.open();
}

}  // namespace
}  // namespace nibble
