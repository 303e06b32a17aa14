// R1 at its true widths, or some of its layers, on one GPU or one rank of several: weights of
// random bits made on the device from a seed.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/cuda/gpu_timing.h"
#include "nibble/model/shard.h"
#include "nibble/model/weights.h"

namespace nibble::bench {

struct R1Options {
  int dense_layers = 3;
  int moe_layers = 58;
  bool with_mtp = true;
  bool with_experts = true;                    // routed ones; false where an ExpertStore has them
  bool other_routers = false;                  // each layer its own; otherwise all the same
  LinearFormat o_proj = LinearFormat::kNvfp4;  // NVFP4 in v2's layout, BF16 in NVIDIA's first one
  Shard shard;
  Communicator* comm = nullptr;  // on device memory
};

ModelConfig r1_config(const R1Options& options);

class R1Model {
 public:
  R1Model(Kernels& kernels, const R1Options& options);
  const Weights& weights() const { return weights_; }
  // With the memory that they lie in; this object is empty then.
  Weights take_weights();
  Weights& weights() { return weights_; }

 private:
  const float* floats(const std::vector<float>& values);
  void* take(size_t bytes);
  LinearWeight linear(LinearFormat format, int64_t rows, int64_t cols);
  LinearWeight router(int layer);
  MlpWeight mlp(int64_t intermediate);
  void fill(LayerWeights& layer, int number, bool is_moe);

  Kernels& kernels_;
  R1Options options_;
  Weights weights_;
  std::vector<Buffer> buffers_;
  size_t free_bytes_ = 0;  // at the end of the last buffer
  uint64_t seed_ = 0;
  std::vector<uint16_t> kv_b_host_;
  std::vector<uint16_t> router_host_;
  const float* ones_ = nullptr;
  const float* bias_ = nullptr;
};

}  // namespace nibble::bench
