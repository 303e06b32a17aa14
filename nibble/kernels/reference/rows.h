// The definitions of operations on single rows, shared by the operations that contain them.
#pragma once

#include <cstdint>

#include "nibble/kernels/kernels.h"

namespace nibble {

// As Kernels::rms_norm for one row of n elements; out may be x.
void rms_norm_row(const float* x, const float* weight, float epsilon, int64_t n, float* out);

// Rotates the 2 * half_dim elements of x in place, as Kernels::rotary_query says.
void rotate_row(float* x, const RopeTable& rope, int64_t position);

// silu(gate) * up, silu(v) = v / (1 + exp(-v)), in binary64, rounded once.
float swiglu(float gate, float up);

// As Kernels::route for one token, given its logits [n_routed_experts].
void route_row(const float* logits, const float* bias, const RouterShape& shape,
               int32_t* expert_ids, float* weights);

// Writes one cache entry of view.entry_size values, rounded to the cache's type.
void write_cache_entry(const KvCacheView& view, int64_t offset, const float* entry);

// Reads one cache entry as binary32.
void read_cache_entry(const KvCacheView& view, int64_t offset, float* entry);

}  // namespace nibble
