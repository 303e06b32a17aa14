// How the cuda backend computes. Apart from the backend, so that it can be asked for in any build.
#pragma once

namespace nibble {

struct CudaOptions {
  // What tensor cores get of an activation: 1: its nearest BF16 value (W4A16; an error of 2^-9 a
  // value); 2: two BF16 values that sum to 16 bits of it; 3: all 24 bits of it. 2 and 3 cost time
  // only where products are bound by arithmetic. Routing always takes 3.
  int activation_parts = 1;

  // A token's results have the same bits in every batch. Without it sums are taken in the order
  // that is fastest for a step's tokens: which experts they chose, how many positions attention
  // has, cuBLASLt from 128 tokens on. The same step gives the same bits in any case.
  bool batch_invariant = false;

  // Of experts alone: their sums have an order that does not depend on which others run in the
  // same launch, so that experts may come in parts (offload). batch_invariant implies it.
  bool fixed_expert_order = false;

  // In CUDA's count (CUDA_VISIBLE_DEVICES applies).
  int device = 0;
};

}  // namespace nibble
