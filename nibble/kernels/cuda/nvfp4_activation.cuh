// Activations in NVFP4 by the rule of run time (spec nvfp4 section 2), bit by bit what
// quantize_nvfp4_activation_block() of nibble/numeric gives.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kFp4Block = 16;

__device__ inline int e4m3_times_512(uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int fraction = code & 7;
  return exponent == 0 ? fraction : (8 + fraction) << (exponent - 1);
}

// The magnitude of E2M1 code 0 to 7, doubled.
__device__ inline int doubled_e2m1(int code) {
  return code < 5 ? code : code == 5 ? 6 : code == 6 ? 8 : 12;
}

// The E2M1 code nearest to v; midpoints go to the even code.
__device__ inline int e2m1_code_of(float v) {
  const float a = fabsf(v);
  const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                   (a >= 3.5f) + (a > 5.0f);
  return v < 0 ? code | 8 : code;
}

// Sixteen values of a row and what they become.
struct ActivationBlock {
  float v[kFp4Block];
  bool finite;
  uint8_t scale;  // E4M3; 0 where the values are not finite
  float divisor;  // of the values, to their codes

  // From column `first` of a row of `cols` values on, zeros behind the last one.
  __device__ void load(const float* row, int64_t first, int64_t cols, float input_scale) {
    float amax = 0;
    finite = true;
#pragma unroll
    for (int i = 0; i < kFp4Block; ++i) {
      v[i] = first + i < cols ? row[first + i] : 0;
      finite = finite && isfinite(v[i]);
      amax = fmaxf(amax, fabsf(v[i]));
    }
    const float ratio = __fdiv_rn(amax, __fmul_rn(6.0f, input_scale));
    scale = finite ? __nv_cvt_float_to_fp8(fminf(ratio, 448.0f), __NV_SATFINITE, __NV_E4M3)
                   : uint8_t{0};
    divisor = __fmul_rn(ldexpf(static_cast<float>(e4m3_times_512(scale)), -9), input_scale);
  }

  __device__ int code(int i) const {
    return divisor == 0 ? 0 : e2m1_code_of(__fdiv_rn(v[i], divisor));
  }
};

}  // namespace nibble::cuda
