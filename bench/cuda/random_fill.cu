#include "bench/cuda/gpu_timing.h"

namespace nibble::bench {
namespace {

constexpr int kThreads = 256;

__device__ uint32_t hash(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x >> 32);
}

// mask clears bits that would make NaN or infinity, set puts exponents near 1.
__global__ void fill_words_kernel(uint32_t* data, size_t count, uint32_t mask, uint32_t set,
                                  uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    data[i] = (hash(seed * 0x9e3779b97f4a7c15ull + i) & mask) | set;
  }
}

__global__ void fill_normal_kernel(float* data, int64_t count, float deviation, uint64_t seed) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = -6;
  for (uint64_t k = 0; k < 12; ++k) {
    sum += static_cast<float>(hash(seed + static_cast<uint64_t>(i) * 12 + k)) * 0x1p-32f;
  }
  data[i] = sum * deviation;
}

}  // namespace

void fill_packed(void* data, size_t bytes, LinearFormat format, uint64_t seed,
                 cudaStream_t stream) {
  // BF16: exponents 112..127. Bytes of 4 and 8 bits: any code but E4M3's NaN.
  uint32_t mask = 0xffffffff;
  uint32_t set = 0;
  if (format == LinearFormat::kBf16 || format == LinearFormat::kF32) {
    mask = 0x87ff87ff;
    set = 0x38003800;
  } else if (format == LinearFormat::kFp8Block) {
    mask = 0xbfbfbfbf;
  } else {
    mask = 0x7f7f7f7f;  // scale codes stay below 0x80
  }
  fill_words_kernel<<<2048, kThreads, 0, stream>>>(static_cast<uint32_t*>(data), bytes / 4, mask,
                                                   set, seed);
}

void fill_bf16(void* data, int64_t count, uint64_t seed, cudaStream_t stream) {
  fill_packed(data, static_cast<size_t>(count) * 2, LinearFormat::kBf16, seed, stream);
}

void fill_normal(float* data, int64_t count, float deviation, uint64_t seed, cudaStream_t stream) {
  fill_normal_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       stream>>>(data, count, deviation, seed);
}

}  // namespace nibble::bench
