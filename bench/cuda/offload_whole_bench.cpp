// All 61 layers of R1: layer after layer over several GPUs of one host, as many routed experts in
// their memory as fit, the others in RAM. Weights are made from a seed on the spot.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "bench/cuda/offload_stage.h"
#include "nibble/device/cuda/cuda_device.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDenseLayers = 3;
constexpr int kMoeLayers = 58;
constexpr uint64_t kLeft = uint64_t{6} << 30;  // of a GPU's memory, for scratch
constexpr int kCacheSlots = 4;                 // of a layer, for experts that come from RAM

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Total {
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t ram_misses = 0;
  double gb = 0;
};

class Whole {
 public:
  Whole(int num_gpus, double ram_gb);
  void run();

 private:
  void step(const StageBatch& batch);
  Total total() const;
  void decode(int64_t sequences, int warm_up, int steps, const char* what, double gpu_ms,
              double* ms);
  void all_hits(bool on);

  std::vector<std::unique_ptr<OffloadStage>> stages_;
  std::vector<double> links_;
  std::vector<int> pinned_;         // of a layer, by stage
  std::vector<std::byte> between_;  // hidden states on their way
};

Whole::Whole(int num_gpus, double ram_gb) {
  const auto begin = Clock::now();
  int given = 0;
  for (int i = 0; i < num_gpus; ++i) {
    StageOptions options;
    options.device = i;
    options.dense_layers = i == 0 ? kDenseLayers : 0;
    options.moe_layers = (kMoeLayers - given) / (num_gpus - i);
    options.max_tokens = 256;
    given += options.moe_layers;
    stages_.push_back(std::make_unique<OffloadStage>(options));
    links_.push_back(pinned_copy_rate(*stages_.back()));
  }
  const size_t bytes = seeded_expert_bytes(stages_[0]->kernels());
  double gpu_experts = 0;
  double ram_experts = 0;
  std::vector<OffloadStage::Places> places;
  for (const auto& stage : stages_) {
    const DeviceMemory memory = or_exit(stage->kernels().device().memory());
    const int64_t layers = stage->num_experts() / 256;
    const auto each = static_cast<int64_t>((memory.free_bytes - kLeft) / bytes) / layers;
    OffloadStage::Places place;
    place.pinned = static_cast<int>(std::clamp<int64_t>(each - kCacheSlots, 0, 256));
    place.gpu_slots = std::min(each, int64_t{256}) * layers;
    // Two more a layer, for those on their way to the GPU.
    place.ram_slots = std::min<int64_t>((256 - place.pinned + 2) * layers, 256 * layers);
    place.ram = page_locked_slots(stage->kernels().device());
    gpu_experts += static_cast<double>(place.gpu_slots);
    ram_experts += static_cast<double>(place.ram_slots);
    pinned_.push_back(place.pinned);
    places.push_back(std::move(place));
  }
  const double ram_bytes = ram_experts * static_cast<double>(bytes);
  fmt::print(
      "\nR1, 61 layers over {} GPUs one behind the other, {} experts of {} bytes from a seed "
      "({:.1f} GB), BF16 attention; {:.0f} of them on GPUs ({:.1f} GB), room for {:.0f} in RAM "
      "({:.1f} GB)\n",
      num_gpus, kMoeLayers * 256, bytes, 256e-9 * kMoeLayers * static_cast<double>(bytes),
      gpu_experts, 1e-9 * gpu_experts * static_cast<double>(bytes), ram_experts, 1e-9 * ram_bytes);
  for (size_t i = 0; i < links_.size(); ++i) {
    fmt::print("limit: GPU {} takes copies of records from page-locked memory at {:.1f} GB/s\n", i,
               links_[i]);
  }
  std::fflush(stdout);
  if (ram_bytes > ram_gb * 1e9) {
    fail(fmt::format("that is more than the {} GB of RAM that were allowed", ram_gb));
  }
  std::vector<std::thread> threads;
  for (size_t i = 0; i < stages_.size(); ++i) {
    threads.emplace_back([&, i] { stages_[i]->place(places[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  fmt::print("in place after {:.1f} s\n", seconds_since(begin));
  std::fflush(stdout);
}

void Whole::step(const StageBatch& batch) {
  const Batch tokens = batch.batch();
  for (size_t i = 0; i < stages_.size(); ++i) {
    OffloadStage& stage = *stages_[i];
    stage.make_current();
    const MatrixView x = stage.x(tokens);
    if (i == 0) {
      stage.embed(tokens);
    } else {
      or_exit(stage.kernels().device().copy_to_device(x.data, between_));
    }
    stage.layers(tokens);
    if (i + 1 == stages_.size()) {
      stage.head(tokens);
      stage.synchronize();
    } else {
      between_.resize(static_cast<size_t>(x.rows * x.cols) * sizeof(float));
      or_exit(stage.kernels().device().copy_to_host(between_, x.data));
    }
  }
}

Total Whole::total() const {
  Total total;
  for (const auto& stage : stages_) {
    const ExpertStoreStats stats = stage->store()->stats();
    total.hits += stats.num_hits;
    total.misses += stats.num_misses + stats.num_guesses_late;
    total.ram_misses += stats.below.num_misses;
    total.gb += static_cast<double>(stats.bytes_read) / 1e9;
  }
  return total;
}

// Makes every token choose experts that are on the GPU, or lets it choose.
void Whole::all_hits(bool on) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    const auto& stage = stages_[i];
    std::vector<float> bias(256, 0);
    for (int k = 0; on && k < pinned_[i]; ++k) bias[static_cast<size_t>(pinned_expert(k))] = 10;
    for (const LayerWeights& layer : stage->weights().layers) {
      if (!layer.moe) continue;
      or_exit(stage->kernels().device().copy_to_device(
          const_cast<float*>(layer.moe->e_score_correction_bias), std::as_bytes(std::span(bias))));
    }
  }
}

void Whole::decode(int64_t sequences, int warm_up, int steps, const char* what, double gpu_ms,
                   double* ms) {
  Total before;
  Clock::time_point begin;
  for (int i = 0; i < warm_up + steps; ++i) {
    if (i == warm_up) {
      before = total();
      begin = Clock::now();
    }
    step(StageBatch(sequences, 1, 4096, static_cast<uint32_t>(300 + i)));
  }
  const double step_ms = 1000 * seconds_since(begin) / steps;
  if (ms != nullptr) *ms = step_ms;
  const Total after = total();
  const auto hits = static_cast<double>(after.hits - before.hits);
  const auto misses = static_cast<double>(after.misses - before.misses);
  const double gb = (after.gb - before.gb) / steps;
  fmt::print(
      "batch {}{}: {:8.2f} ms a step, {:6.2f} tokens/s; {:5.1f} % hits, {:6.3f} GB copied a step, "
      "{} experts made anew",
      sequences, what, step_ms, 1000 * static_cast<double>(sequences) / step_ms,
      100 * hits / std::max(1.0, hits + misses), gb, after.ram_misses - before.ram_misses);
  if (gpu_ms > 0) {
    const double copy_ms = 1000 * gb / *std::min_element(links_.begin(), links_.end());
    fmt::print("; formula: GPU {:.2f} + copies {:.2f} ms = {:.2f} tokens/s, reached {:.0f} %",
               gpu_ms, copy_ms, 1000 * static_cast<double>(sequences) / (gpu_ms + copy_ms),
               100 * (gpu_ms + copy_ms) / step_ms);
  }
  fmt::print("\n");
  std::fflush(stdout);
}

void Whole::run() {
  // A prompt's chunks: every expert that is not on a GPU comes to RAM.
  for (int i = 0; i < 3; ++i) {
    const auto begin = Clock::now();
    const Total before = total();
    step(StageBatch(1, 256, 4096, static_cast<uint32_t>(i)));
    const double seconds = seconds_since(begin);
    const Total after = total();
    fmt::print("chunk of 256 tokens: {:.2f} s, {:.1f} GB copied, {} experts made\n", seconds,
               after.gb - before.gb, after.ram_misses - before.ram_misses);
    std::fflush(stdout);
  }
  for (const int64_t sequences : {1, 8}) {
    double gpu_ms = 0;
    all_hits(true);
    decode(sequences, 3, 6, ", all hits", 0, &gpu_ms);
    all_hits(false);
    decode(sequences, 4, sequences == 1 ? 24 : 10, "", gpu_ms, nullptr);
  }
}

}  // namespace

void bench_offload_whole(int num_gpus, double ram_gb) {
  if (num_gpus < 1 || num_cuda_devices() < num_gpus) {
    fail(
        fmt::format("{} GPUs were asked for, this machine shows {}", num_gpus, num_cuda_devices()));
  }
  Whole(num_gpus, ram_gb).run();
}

}  // namespace nibble::bench
