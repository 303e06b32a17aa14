// How the cuda backend computes. Apart from the backend, so that it can be asked for in any build.
#pragma once

namespace nibble {

struct CudaOptions {
  // What tensor cores get of an activation: 1: its nearest BF16 value (W4A16; an error of 2^-9 a
  // value); 2: two BF16 values that sum to 16 bits of it; 3: all 24 bits of it. 2 and 3 cost time
  // only where products are bound by arithmetic. Routing always takes 3.
  int activation_parts = 1;

  // A token's results have the same bits in every batch. Without it that holds for up to 127
  // tokens; with more, sums are taken in another order (cuBLASLt's, and
  // fewer runs of positions in attention).
  bool batch_invariant = false;

  // In CUDA's count (CUDA_VISIBLE_DEVICES applies).
  int device = 0;
};

}  // namespace nibble
