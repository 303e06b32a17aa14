#include "nibble/cli/expert_refusals.h"

namespace nibble {

std::span<const ExpertRefusal> expert_refusals() {
  static constexpr ExpertRefusal kRefusals[] = {
      {"max_experts",
       "fewer experts for a token than the model's change the result; gpu_expert_slots says how "
       "many of each layer the GPU holds"},
      {"expert_threshold",
       "leaving out experts with a small weight changes the result; prefetch_min_score leaves out "
       "guesses, which changes none"},
      {"sliding_window", "attention to a part of the context changes the result"},
      {"transfer_compression",
       "NVFP4 does not get smaller without changing the result; a trained router's experts need "
       "fewer copies with more gpu_expert_memory or hot_experts"},
      {"miss_precision", "experts that are not in memory are computed like those that are"},
      {"memory_limit",
       "one budget for a whole GPU is not supported; gpu_expert_memory is that of its experts, "
       "gpu_reserved what they leave"},
      {"prefetch_size", "there are no buffers between file and GPU to size: ram is page-locked"},
      {"max_gpu_layers",
       "experts are kept one by one, not by layers; gpu_expert_memory says how many, hot_experts "
       "which"},
      {"min_layers",
       "experts are kept one by one, not by layers; gpu_expert_memory says how many, hot_experts "
       "which"},
      {"moe_layers_on_cpu", "cpu_experts auto computes on the CPU what pays there"},
      {"mmap_mode",
       "a mapped file turns a failing disk into a dead process; io is auto, uring, pread or "
       "buffered"},
      {"ssd",
       "experts are read from experts.nibble in the model's folder, which may be a symbolic link "
       "to a file on another disk"},
  };
  return kRefusals;
}

}  // namespace nibble
