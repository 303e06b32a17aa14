// One thread decodes one block of 16 columns: 8 bytes in, four 16-byte stores out.
#include <cuda_fp8.h>

#include "nibble/base/check.h"
#include "nibble/kernels/cuda/dequantize_nvfp4.h"

namespace nibble {
namespace {

constexpr int kBlock = 16;  // columns of an NVFP4 block
constexpr int kThreads = 256;

__device__ __constant__ const float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                 4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                 -2.0f, -3.0f, -4.0f, -6.0f};

__global__ void dequantize_nvfp4_kernel(const uint2* packed, const uint8_t* block_scales,
                                        float global_scale, int64_t num_blocks, float* out) {
  const int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b >= num_blocks) return;

  const uint2 bytes = packed[b];
  const __half_raw half = __nv_cvt_fp8_to_halfraw(block_scales[b], __NV_E4M3);
  // Both products round once, as in the definition; no fused operation may take their place.
  const float scale = __fmul_rn(__half2float(half), global_scale);
  float4* const row = reinterpret_cast<float4*>(out) + 4 * b;
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {  // two bytes, four columns
    const uint32_t pair = (quad < 2 ? bytes.x : bytes.y) >> (16 * (quad % 2));
    row[quad] = make_float4(
        __fmul_rn(kE2m1[pair & 0xf], scale), __fmul_rn(kE2m1[pair >> 4 & 0xf], scale),
        __fmul_rn(kE2m1[pair >> 8 & 0xf], scale), __fmul_rn(kE2m1[pair >> 12 & 0xf], scale));
  }
}

}  // namespace

void dequantize_nvfp4_cuda(const LinearWeight& weight, float* out) {
  NIBBLE_CHECK(weight.format == LinearFormat::kNvfp4 && weight.cols % kBlock == 0);
  const int64_t num_blocks = weight.rows * weight.cols / kBlock;
  const auto grid = static_cast<unsigned>((num_blocks + kThreads - 1) / kThreads);
  dequantize_nvfp4_kernel<<<grid, kThreads>>>(static_cast<const uint2*>(weight.data),
                                              static_cast<const uint8_t*>(weight.scales),
                                              weight.global_scale, num_blocks, out);
}

}  // namespace nibble
