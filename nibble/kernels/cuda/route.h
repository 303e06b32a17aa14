// The choice of experts.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/kernels.h"

namespace nibble::cuda {

//   logits  float [tokens, n_routed_experts]
void launch_route(const float* logits, int64_t tokens, const float* bias, const RouterShape& shape,
                  int32_t* expert_ids, float* weights, cudaStream_t stream);

// The gate's product and the choice in one launch, for few tokens.
struct RouteFewArgs {
  const uint8_t* gate = nullptr;  // BF16, packed (packed_layout.h)
  int64_t units = 0;              // of columns
  const float* x = nullptr;       // [tokens], 16-byte aligned rows of units * 128
  int64_t x_stride = 0;
  const float* bias = nullptr;
  RouterShape shape;
  float* parts = nullptr;        // route_few_floats() of them
  unsigned* arrivals = nullptr;  // [kMaxRouteFewTokens], zero between launches
  int32_t* expert_ids = nullptr;
  float* weights = nullptr;
};

inline constexpr int64_t kMaxRouteFewTokens = 8;

bool route_few_takes(const LinearWeight& gate, const MatrixView& x, const RouterShape& shape);
int64_t route_few_floats(int64_t tokens, int64_t units, const RouterShape& shape);
cudaError_t launch_route_few(const RouteFewArgs& args, int64_t tokens, cudaStream_t stream);

}  // namespace nibble::cuda
