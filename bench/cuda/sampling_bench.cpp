// Tokens from rows of R1's vocabulary: what a step's sampling takes of the device, launches and the
// copies of its small arrays included.
#include <fmt/format.h>

#include "bench/cuda/gpu_timing.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/device_sampler.h"

namespace nibble::bench {

void bench_sampling(Kernels& kernels) {
  constexpr int64_t kVocab = 129280;
  constexpr int64_t kMostRows = 64;
  Device& device = kernels.device();
  const auto sampler = kernels.make_sampler(kVocab).value();
  if (!sampler->reserve_weights(kMostRows)) check_cuda(cudaErrorMemoryAllocation, "kept weights");
  const Buffer logits = device.allocate(kMostRows * kVocab * sizeof(float)).value();
  fill_normal(logits.as<float>(), kMostRows * kVocab, 3, 7, cuda_stream(device));
  const MatrixView view{logits.data(), DType::kF32, kMostRows, kVocab, kVocab};
  struct Way {
    const char* name;
    bool greedy;
    double top_p;
    bool keep;
    double acceptance;  // of a draft to be judged; below 0: none
  };
  fmt::print("\nsampling of {} logits a row, us by rows\n{:34}", kVocab, "");
  for (const int64_t rows : {1, 8, 64}) fmt::print("{:>8}", rows);
  fmt::print("\n");
  for (const Way& way : {Way{"greedy", true, 1, false, -1}, Way{"drawn", false, 1, false, -1},
                         Way{"drawn, top_p 0.95", false, 0.95, false, -1},
                         Way{"draft drawn and kept", false, 1, true, -1},
                         Way{"draft judged: stands", false, 1, false, 0},
                         Way{"draft judged: refused", false, 1, false, 1e30}}) {
    fmt::print("{:34}", way.name);
    for (const int64_t count : {1, 8, 64}) {
      std::vector<SampleRow> rows;
      for (int64_t r = 0; r < count; ++r) {
        SampleRow& row = rows.emplace_back();
        row.row = way.acceptance >= 0 ? (r + 1) % kMostRows : r;  // q is another row's
        row.greedy = way.greedy;
        row.top_p = way.top_p;
        row.uniform = 0.4;
        if (way.keep) row.keep_weights = static_cast<int32_t>(r);
        if (way.acceptance < 0) continue;
        row.draft = static_cast<int32_t>(r);
        row.draft_weights = static_cast<int32_t>(r);
        row.acceptance = way.acceptance;
      }
      const Samples us = time_launches(
          device, [&] { sampler->sample(view, rows); }, 20);
      fmt::print("{:8.1f}", us.median);
    }
    fmt::print("\n");
  }
}

}  // namespace nibble::bench
