// A slice of R1 at its widths with 100 to 25 % of its routed experts in GPU memory and all in
// page-locked RAM, beside what the link and the GPU alone give. Of times alone: that the bits are
// the same is checked by tests/cuda/offload_test.cpp, with experts that matter.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>

#include "bench/cuda/offload_stage.h"
#include "nibble/device/cuda/cuda_device.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Run {
  double ms = 0;  // of a step
  double gb = 0;  // copied for it
  double hit_rate = 0;
  double on_host = 0;  // experts of a step that the CPU computed
};

// Steps of `sequences` x 1 tokens, always the same ones.
Run decode(OffloadStage& stage, int64_t sequences, int warm_up, int steps) {
  Run run;
  ExpertStoreStats before;
  Clock::time_point begin;
  for (int i = 0; i < warm_up + steps; ++i) {
    if (i == warm_up) {
      stage.synchronize();
      before = stage.store()->stats();
      begin = Clock::now();
    }
    const StageBatch batch(sequences, 1, 4096, static_cast<uint32_t>(100 + i));
    stage.step(batch.batch());
    stage.synchronize();
  }
  run.ms = 1000 * seconds_since(begin) / steps;
  ExpertStoreStats after = stage.store()->stats();
  run.gb = static_cast<double>(after.bytes_read - before.bytes_read) / 1e9 / steps;
  after.num_hits -= before.num_hits;
  after.num_misses -= before.num_misses;
  after.num_guesses_late -= before.num_guesses_late;
  run.hit_rate = after.hit_rate();
  run.on_host = static_cast<double>(after.num_on_host - before.num_on_host) / steps;
  return run;
}

// The same passes recorded, with experts from the store and without one, in turn.
void compare_resident(OffloadStage& stage) {
  for (const int64_t sequences : {1, 8}) {
    const StageBatch batch(sequences, 1, 4096, 7);
    const Batch tokens = batch.batch();
    double with = 0;
    double without = 0;
    for (int round = 0; round < 3; ++round) {
      stage.weights().expert_store = stage.store();
      with += time_graph(stage.kernels().device(), [&] { stage.step(tokens); }).median / 3;
      for (LayerWeights& layer : stage.weights().layers) {
        const auto all = stage.store()->resident(layer.moe->layer);
        layer.moe->experts.assign(all.begin(), all.end());
      }
      stage.weights().expert_store = nullptr;
      without += time_graph(stage.kernels().device(), [&] { stage.step(tokens); }).median / 3;
      for (LayerWeights& layer : stage.weights().layers) layer.moe->experts.clear();
    }
    stage.weights().expert_store = stage.store();
    fmt::print(
        "all resident, recorded, batch {}: {:.3f} ms a step with the store, {:.3f} without: "
        "{:+.2f} %\n",
        sequences, with / 1000, without / 1000, 100 * (with / without - 1));
  }
}

// All experts of all layers through the store, without a model.
double stream_rate(OffloadStage& stage) {
  std::vector<ExpertUse> uses;
  std::vector<int32_t> all;
  for (int32_t e = 0; e < 256; ++e) {
    uses.push_back({e, 1, 1});
    all.push_back(e);
  }
  const ExpertStoreStats before = stage.store()->stats();
  const auto begin = Clock::now();
  for (const LayerWeights& layer : stage.weights().layers) {
    stage.store()->announce(layer.moe->layer, uses, 256);
    std::vector<int32_t> wanted = all;
    while (!wanted.empty()) {
      const ExpertLease lease = or_exit(stage.store()->acquire(layer.moe->layer, wanted));
      for (const int32_t e : lease.ids()) std::erase(wanted, e);
    }
  }
  stage.synchronize();
  const double seconds = seconds_since(begin);
  const int64_t bytes = stage.store()->stats().bytes_read - before.bytes_read;
  return static_cast<double>(bytes) / seconds / 1e9;
}

}  // namespace

void bench_offload(int layers) {
  if (num_cuda_devices() < 1) fail("no GPU is here");
  StageOptions options;
  options.moe_layers = layers;
  OffloadStage stage(options);
  const int64_t all = stage.num_experts();
  const size_t bytes = seeded_expert_bytes(stage.kernels());
  auto begin = Clock::now();
  SharedSlots ram(stage.kernels().device(), bytes, bytes * static_cast<uint64_t>(all) / 4);
  fmt::print(
      "\n{} MoE layers of R1's widths, {} experts of {} bytes from a seed, context 4096, BF16 "
      "attention and cache; in RAM four experts share memory ({:.1f} GB, {:.1f} s to take)\n",
      layers, all, bytes, static_cast<double>(bytes * ram.num_distinct()) / 1e9,
      seconds_since(begin));
  double link = pinned_copy_rate(stage);
  fmt::print("limit: copies of records from page-locked memory {:.1f} GB/s\n", link);
  std::fflush(stdout);

  std::map<int64_t, Run> resident;
  struct Case {
    double share;
    int prefetch_layers;
    HostExperts host = HostExperts::kOff;
  };
  for (const Case c : {Case{1, 0},
                       {0.9999, 0},
                       {0.75, 0},
                       {0.5, 0},
                       {0.25, 0},
                       {0.25, 1},
                       {0.75, 0, HostExperts::kAuto},
                       {0.5, 0, HostExperts::kAuto},
                       {0.25, 0, HostExperts::kAuto},
                       {0.25, 0, HostExperts::kAll}}) {
    OffloadStage::Places places;
    places.gpu_slots =
        c.share == 1 ? all
                     : std::min(all - 1, static_cast<int64_t>(c.share * static_cast<double>(all)));
    places.ram_slots = all;
    places.prefetch_layers = c.prefetch_layers;
    places.host_experts = c.host;
    places.ram = ram.allocator();
    places.shared = &ram;
    begin = Clock::now();
    stage.place(places);
    const double placed = seconds_since(begin);
    // Fills the GPU's slots; then a prompt's chunk, through which every layer's experts stream.
    const StageBatch chunk(1, 512, 4096, 1);
    stage.step(chunk.batch());
    stage.synchronize();
    const ExpertStoreStats before = stage.store()->stats();
    begin = Clock::now();
    stage.step(chunk.batch());
    stage.synchronize();
    const double chunk_seconds = seconds_since(begin);
    const double chunk_gb =
        static_cast<double>(stage.store()->stats().bytes_read - before.bytes_read) / 1e9;
    fmt::print("\n{} of {} experts on the GPU{} ({:.1f} s to place)\n", places.gpu_slots, all,
               c.prefetch_layers == 1        ? ", guesses on (right here by construction)"
               : c.host != HostExperts::kOff ? ", the CPU computes misses"
                                             : "",
               placed);
    fmt::print("chunk of 512 tokens: {:8.1f} ms, {:6.2f} GB copied, {:.0f} % of the link\n",
               1000 * chunk_seconds, chunk_gb, 100 * chunk_gb / chunk_seconds / link);
    for (const int64_t sequences : {1, 8}) {
      const int steps = sequences == 1 ? 24 : 12;
      const Run run = decode(stage, sequences, steps / 2, steps);
      if (c.share == 1) resident[sequences] = run;
      const Run& reference = resident[sequences];
      const double copy_ms = 1000 * run.gb / link;
      const double serial = reference.ms + copy_ms;
      const double overlapped = std::max(reference.ms, copy_ms);
      fmt::print(
          "batch {}: {:8.2f} ms a step, {:7.2f} tokens/s; {:5.1f} % hits, {:6.3f} GB copied; "
          "formula "
          "{:7.2f} one after the other ({:.0f} %), {:7.2f} overlapped ({:.0f} %); "
          "{:.1f} computed by the CPU a step\n",
          sequences, run.ms, 1000 * static_cast<double>(sequences) / run.ms, 100 * run.hit_rate,
          run.gb, serial, 100 * serial / run.ms, overlapped, 100 * overlapped / run.ms,
          run.on_host);
    }
    if (c.share == 1) compare_resident(stage);
    if (c.share == 0.25 && c.prefetch_layers == 0 && c.host == HostExperts::kOff) {
      const double rate = stream_rate(stage);
      fmt::print("all experts through the store: {:.1f} GB/s, {:.0f} % of the link\n", rate,
                 100 * rate / link);
    }
    std::fflush(stdout);
  }
  stage.forget();
  link = pinned_copy_rate(stage);
  fmt::print("limit, again: {:.1f} GB/s\n", link);
}

}  // namespace nibble::bench
