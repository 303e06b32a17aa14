// Damaged files and failing disks: a request fails with the record's name, or waits; the others
// get their tokens, and nobody a wrong one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/engine/engine.h"
#include "tests/offload/offload_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

uint64_t place_of(int layer, int expert) {
  return ExpertFile::open(testing::packed_demo())->find(layer, expert)->offset;
}

// What acquiring one expert of a fresh store over `path` says.
Result<ExpertLease> acquire_one(TieredStore& store, int layer, int32_t expert) {
  const ExpertUse use{expert, 1, 1.0f};
  store.announce(layer, std::span(&use, 1), 1);
  return store.acquire(layer, std::span(&expert, 1));
}

std::unique_ptr<TieredStore> small_store(std::unique_ptr<ExpertLoader> loader) {
  TieredStoreOptions options;
  options.memory_bytes = 4 * testing::demo_record_bytes();
  return testing::make_store(std::move(loader), std::move(options));
}

TEST(OffloadFaults, AFlippedBitAnywhereInARecordIsRefusedByItsName) {
  const uint64_t record = testing::demo_record_bytes();
  // Magic, number, a shape, both checksums, the first and the last byte of the payload.
  for (const uint64_t at : {uint64_t{0}, uint64_t{8}, uint64_t{40}, uint64_t{168}, uint64_t{176},
                            kExpertAlignment, record - 1}) {
    SCOPED_TRACE(at);
    const auto path = testing::copy_of_packed_demo("flipped.nibble");
    testing::flip_byte(path, place_of(2, 5) + at);
    const auto store = small_store(testing::packed_loader(path));
    const auto bad = acquire_one(*store, 2, 5);
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(bad.error().message, HasSubstr("layer 2 expert 5"));
    EXPECT_TRUE(acquire_one(*store, 2, 4)) << "its neighbour is whole";
    EXPECT_FALSE(acquire_one(*store, 2, 5)) << "it stays refused";
  }
}

TEST(OffloadFaults, AFileCutShortIsRefusedWhenItIsOpened) {
  const auto path = testing::copy_of_packed_demo("short.nibble");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4096);
  const auto file = ExpertFile::open(path);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(file.error().message, HasSubstr("cut short"));
}

TEST(OffloadFaults, AFileCutShortWhileItIsUsedIsRefusedByTheRecord) {
  for (const IoBackend io : {IoBackend::kAuto, IoBackend::kPread, IoBackend::kBuffered}) {
    const auto path = testing::copy_of_packed_demo("cut.nibble");
    ReaderOptions reader;
    reader.backend = io;
    reader.piece_bytes = 65536;
    const auto store = small_store(testing::packed_loader(path, reader));
    std::filesystem::resize_file(path, place_of(4, 15) + 70000 / 4096 * 4096);
    const auto bad = acquire_one(*store, 4, 15);
    ASSERT_FALSE(bad);
    EXPECT_THAT(bad.error().message, HasSubstr("layer 4 expert 15"));
    EXPECT_THAT(bad.error().message, HasSubstr("cut short"));
    EXPECT_TRUE(acquire_one(*store, 1, 0));
  }
}

// A loader whose reads can be made to fail or to wait.
class FaultyLoader final : public ExpertLoader {
 public:
  explicit FaultyLoader(std::unique_ptr<ExpertLoader> inner) : inner_(std::move(inner)) {}
  ~FaultyLoader() override {
    for (std::thread& thread : threads_) thread.join();
  }
  int fail_layer = -1;
  int fail_expert = -1;
  std::chrono::milliseconds delay{0};

  uint64_t record_bytes(int layer, int expert) const override {
    return inner_->record_bytes(layer, expert);
  }
  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    if (layer == fail_layer && expert == fail_expert) {
      threads_.emplace_back([done] { done(system_error("cannot read the disk", EIO)); });
      return 0;
    }
    if (delay.count() > 0) {
      done = [this, done = std::move(done)](Status status) {
        std::this_thread::sleep_for(delay);
        done(std::move(status));
      };
    }
    return inner_->start(layer, expert, destination, urgent, std::move(done));
  }
  void hurry(uint64_t ticket) override { inner_->hurry(ticket); }
  bool cancel(uint64_t ticket) override { return inner_->cancel(ticket); }
  uint64_t bytes_read() const override { return inner_->bytes_read(); }
  double busy_seconds() const override { return inner_->busy_seconds(); }
  std::string description() const override { return "faults"; }

 private:
  std::unique_ptr<ExpertLoader> inner_;
  std::vector<std::thread> threads_;
};

TEST(OffloadFaults, AStalledReadIsWaitedFor) {
  auto faulty = std::make_unique<FaultyLoader>(testing::packed_loader(testing::packed_demo()));
  faulty->delay = std::chrono::milliseconds(60);
  const auto store = small_store(std::move(faulty));
  EXPECT_TRUE(acquire_one(*store, 3, 7));
  EXPECT_GE(store->stats().stall_seconds, 0.05);
}

// All requests of an engine over the demo model whose store fails for one expert: those that end
// well have the tokens of the plain model.
TEST(OffloadFaults, OnlyRequestsThatNeedTheRecordFail) {
  const auto model = testing::load_model(testing::demo_checkpoint(), "cpu");
  const auto run = [&](ExpertStore* store) {
    model->weights.expert_store = store;
    EngineOptions options;
    options.num_blocks = 512;
    auto engine = Engine::create(*model, options).value();
    std::vector<uint64_t> ids;
    for (int32_t i = 0; i < 24; ++i) {
      Request request;
      request.prompt_token_ids = {0, 300 + 37 * i};
      request.params.temperature = 0;
      request.params.max_tokens = 3;
      request.params.ignore_eos = true;
      ids.push_back(engine->add(std::move(request)).value());
    }
    std::map<uint64_t, std::pair<std::vector<int32_t>, std::string>> outputs;
    while (engine->has_work()) {
      for (const RequestUpdate& update : engine->step()) {
        auto& [tokens, error] = outputs[update.id];
        tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
        if (update.error) error = update.error->message;
      }
    }
    EXPECT_EQ(engine->stats().num_used_blocks, 0);
    std::vector<std::pair<std::vector<int32_t>, std::string>> all;
    for (const uint64_t id : ids) all.push_back(outputs[id]);
    model->weights.expert_store = nullptr;
    return all;
  };
  const auto plain = run(nullptr);
  auto faulty = std::make_unique<FaultyLoader>(testing::packed_loader(testing::packed_demo()));
  faulty->fail_layer = 2;
  faulty->fail_expert = 6;
  TieredStoreOptions options;
  options.memory_bytes = 24 * testing::demo_record_bytes();
  const auto store = testing::make_store(std::move(faulty), std::move(options));
  const auto tiered = run(store.get());
  int failed = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    ASSERT_EQ(plain[i].second, "");
    if (tiered[i].second.empty()) {
      EXPECT_EQ(tiered[i].first, plain[i].first);
    } else {
      ++failed;
      EXPECT_THAT(tiered[i].second, HasSubstr("layer 2 expert 6"));
      // What it had told before was right.
      ASSERT_LT(tiered[i].first.size(), plain[i].first.size());
      EXPECT_TRUE(
          std::equal(tiered[i].first.begin(), tiered[i].first.end(), plain[i].first.begin()));
    }
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 24);
}

}  // namespace
}  // namespace nibble
