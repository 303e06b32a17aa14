#include "bench/cuda/seeded_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <random>
#include <thread>

#include "nibble/base/check.h"

namespace nibble::bench {
namespace {

constexpr int64_t kHidden = 7168;
constexpr int64_t kIntermediate = 2048;
constexpr float kScale = 1e-9f;  // as R1Model's
constexpr size_t kPattern = size_t{64} << 20;

class SeededLoader final : public ExpertLoader {
 public:
  SeededLoader(size_t matrix_bytes, size_t record_bytes, int num_threads, SharedSlots* slots)
      : matrix_bytes_(matrix_bytes), record_bytes_(record_bytes), slots_(slots) {
    std::mt19937_64 rng(11);
    pattern_.resize(kPattern / 8);
    // Any NVFP4 code; scale codes stay below 0x80 (random_fill.cu).
    for (uint64_t& word : pattern_) word = rng() & 0x7f7f7f7f7f7f7f7full;
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
  }
  SeededLoader(const SeededLoader&) = delete;
  SeededLoader& operator=(const SeededLoader&) = delete;
  ~SeededLoader() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  uint64_t record_bytes(int /*layer*/, int /*expert*/) const override { return record_bytes_; }
  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool /*urgent*/,
                 Done done) override {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({layer, expert, destination, std::move(done)});
    wake_.notify_one();
    return ++last_ticket_;
  }
  void hurry(uint64_t /*ticket*/) override {}
  bool cancel(uint64_t /*ticket*/) override { return false; }
  Result<MlpWeight> open(std::span<std::byte> record, int /*layer*/, int /*expert*/,
                         const ExpertShape& /*shape*/, ActivationFormat /*activation*/) override {
    MlpWeight mlp;
    const std::byte* at = record.data();
    for (LinearWeight* const weight : {&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj}) {
      weight->format = LinearFormat::kNvfp4;
      weight->rows = weight == &mlp.down_proj ? kHidden : kIntermediate;
      weight->cols = weight == &mlp.down_proj ? kIntermediate : kHidden;
      weight->global_scale = kScale;
      weight->data = at;
      at += matrix_bytes_;
    }
    return mlp;
  }
  uint64_t bytes_read() const override { return 0; }
  double busy_seconds() const override { return 0; }
  std::string description() const override { return "a seed"; }

 private:
  struct Job {
    int layer;
    int expert;
    std::span<std::byte> destination;
    Done done;
  };

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      if (slots_ == nullptr || slots_->fill_once(job.destination.data())) fill(job);
      job.done({});
      lock.lock();
    }
  }

  // The pattern from a place that the expert's number gives.
  void fill(const Job& job) const {
    const auto* const pattern = reinterpret_cast<const std::byte*>(pattern_.data());
    size_t from = (static_cast<size_t>(job.layer) * 256 + static_cast<size_t>(job.expert)) *
                  size_t{4099} * 8 % kPattern;
    for (size_t at = 0; at < job.destination.size();) {
      const size_t bytes = std::min(job.destination.size() - at, kPattern - from);
      std::memcpy(job.destination.data() + at, pattern + from, bytes);
      at += bytes;
      from = 0;
    }
  }

  const size_t matrix_bytes_;
  const size_t record_bytes_;
  SharedSlots* const slots_;
  std::vector<uint64_t> pattern_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  uint64_t last_ticket_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

SharedSlots::SharedSlots(Device& device, size_t slot_bytes, uint64_t bytes)
    : slots_(std::max<size_t>(1, bytes / slot_bytes)) {
  constexpr size_t kThreads = 8;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < slots_.size(); i += kThreads) {
        slots_[i] = std::make_shared<Buffer>(device.allocate_host_visible(slot_bytes).value());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

SlotAllocator SharedSlots::allocator() {
  return [this](size_t slot_bytes, int64_t count) -> Result<std::vector<SlotMemory>> {
    std::vector<SlotMemory> slots;
    for (int64_t i = 0; i < count; ++i) {
      const auto& buffer = slots_[static_cast<size_t>(i) % slots_.size()];
      NIBBLE_CHECK(buffer->size() == slot_bytes);
      slots.emplace_back(std::span(buffer->as<std::byte>(), slot_bytes), buffer);
    }
    return slots;
  };
}

bool SharedSlots::fill_once(const std::byte* data) {
  const std::lock_guard lock(mutex_);
  return filled_.insert(data).second;
}

size_t seeded_expert_bytes(const Kernels& kernels) {
  const size_t bytes = 3 * kernels.packed_bytes(LinearFormat::kNvfp4, kIntermediate, kHidden);
  return (bytes + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
}

std::unique_ptr<ExpertLoader> make_seeded_loader(const Kernels& kernels, int num_threads,
                                                 SharedSlots* slots) {
  const size_t matrix = kernels.packed_bytes(LinearFormat::kNvfp4, kIntermediate, kHidden);
  NIBBLE_CHECK(matrix == kernels.packed_bytes(LinearFormat::kNvfp4, kHidden, kIntermediate));
  return std::make_unique<SeededLoader>(matrix, seeded_expert_bytes(kernels), num_threads, slots);
}

}  // namespace nibble::bench
