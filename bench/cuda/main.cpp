// bench_cuda [linear] [moe] [mla] [layers] [prompts] [sampling]: the first four by default. Ratios
// are to the copy bandwidth and the BF16 product measured in the same process, before and after.
//
// bench_cuda ranks:TP:EP:DP:DENSE:MOE ...: R1 on TP GPUs with EP expert groups, with (DP 1) or
// without (0) attention data parallel, DENSE and MOE layers of it; ranks:4:1:0:3:58 is all of R1.
//
// bench_cuda dispatch:TP:EP:MOE: passes over prompts with attention data parallel through MOE
// layers, tokens gathered and sent to their experts alone (--all2all-backend), by number of tokens.
//
// bench_cuda engine:TP:EP:DP:DENSE:MOE:DRAFTS:LENGTH:IN:OUT:BATCH,BATCH,...: the same through the
// whole engine, 2 x BATCH requests of IN + OUT tokens a row; with DRAFTS an acceptance of LENGTH
// tokens is forced. engine:4:1:0:3:58:3:2.8:1024:128:1,8,32 is all of R1. Run it in the repository:
// it borrows the tokenizer of models/demo.
//
// bench_cuda offload:LAYERS: so many MoE layers with 100 to 25 % of their experts in GPU memory.
// bench_cuda offload-whole:GPUS:RAM_GB: all of R1, its layers dealt to GPUS, experts in their
// memory and RAM_GB of the host's.
//
// bench_cuda alone:TP:...: rank 0 of them on one GPU, sums over the ranks left out; with
// NIBBLE_PROFILE=1 one step of each batch between cudaProfilerStart and Stop.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bench/cuda/gpu_timing.h"
#include "nibble/kernels/cuda/cuda_kernels.h"

namespace {

nibble::bench::Limits measure(nibble::Kernels& kernels) {
  const nibble::bench::Limits limits{nibble::bench::copy_bandwidth(kernels.device()),
                                     nibble::bench::gemm_rate(kernels.device())};
  fmt::print("limits: copy {:.0f} GB/s (read + written), BF16 product 8192^3 {:.0f} TFLOP/s\n",
             limits.copy, limits.gemm);
  return limits;
}

std::optional<nibble::bench::EngineBenchOptions> engine_options(const std::string& part) {
  nibble::bench::EngineBenchOptions options;
  int attention_dp = 0;
  int batches = 0;
  nibble::bench::RanksOptions& ranks = options.ranks;
  if (std::sscanf(part.c_str(), "engine:%d:%d:%d:%d:%d:%d:%lf:%d:%d:%n", &ranks.tp_size,
                  &ranks.ep_size, &attention_dp, &ranks.dense_layers, &ranks.moe_layers,
                  &options.num_drafts, &options.forced_acceptance_length, &options.input_len,
                  &options.output_len, &batches) != 9 ||
      batches == 0) {
    return std::nullopt;
  }
  ranks.enable_attention_dp = attention_dp != 0;
  std::istringstream list(part.substr(static_cast<size_t>(batches)));
  for (std::string size; std::getline(list, size, ',');) {
    options.batch_sizes.push_back(std::stoll(size));
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> parts(argv + 1, argv + argc);
  if (parts.empty()) parts = {"linear", "moe", "mla", "layers"};
  bool only_ranks = true;
  for (const std::string& part : parts) {
    nibble::bench::RanksOptions ranks;
    int attention_dp = 0;
    int num_gpus = 0;
    double ram_gb = 0;
    char kind[6] = {};
    if (std::sscanf(part.c_str(), "%5[a-z]:%d:%d:%d:%d:%d", kind, &ranks.tp_size, &ranks.ep_size,
                    &attention_dp, &ranks.dense_layers, &ranks.moe_layers) == 6) {
      ranks.alone = std::string_view(kind) == "alone";
      ranks.enable_attention_dp = attention_dp != 0;
      nibble::bench::bench_ranks(ranks);
    } else if (std::sscanf(part.c_str(), "dispatch:%d:%d:%d", &ranks.tp_size, &ranks.ep_size,
                           &ranks.moe_layers) == 3) {
      ranks.dense_layers = 0;
      ranks.enable_attention_dp = ranks.dispatch = true;
      nibble::bench::bench_ranks(ranks);
    } else if (const auto engine = engine_options(part)) {
      nibble::bench::bench_engine(*engine);
    } else if (int layers = 0; std::sscanf(part.c_str(), "offload:%d", &layers) == 1) {
      nibble::bench::bench_offload(layers);
    } else if (std::sscanf(part.c_str(), "offload-whole:%d:%lf", &num_gpus, &ram_gb) == 2) {
      nibble::bench::bench_offload_whole(num_gpus, ram_gb);
    } else {
      only_ranks = false;
    }
  }
  if (only_ranks) return 0;
  auto kernels = nibble::make_cuda_kernels();
  if (!kernels) {
    fmt::print(stderr, "bench_cuda: {}\n", kernels.error().message);
    return 1;
  }
  fmt::print("{}\n", (*kernels)->name());
  const nibble::bench::Limits limits = measure(**kernels);
  const auto wanted = [&](const char* part) {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  if (wanted("linear")) nibble::bench::bench_linear(**kernels, limits);
  if (wanted("moe")) nibble::bench::bench_moe(**kernels, limits);
  if (wanted("mla")) nibble::bench::bench_mla(**kernels, limits);
  if (wanted("prompts")) nibble::bench::bench_prompts(**kernels, limits);
  if (wanted("sampling")) nibble::bench::bench_sampling(**kernels);
  if (wanted("layers")) nibble::bench::bench_layers(**kernels, limits);
  measure(**kernels);
  return 0;
}
