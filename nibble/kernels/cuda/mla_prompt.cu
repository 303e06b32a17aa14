// A block takes 128 tokens of one head, 16 a warp, with their queries and sums in registers, and
// 64 positions at a time, of which the next ones come (cp.async) while these are multiplied.
// mma.sync, so that it runs on any GPU. The softmax is that of FlashAttention-2 (arXiv 2307.08691):
// a running maximum, sums rescaled when it grows.
//
// Bound: mma.sync, which reaches about 60 % of a Hopper's rate.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_prompt.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // tokens of a block
constexpr int kTile = 64;           // positions at a time
constexpr int kKeyBytes = 2 * kKey;
constexpr int kValueBytes = 2 * kValue;
constexpr int kStageBytes = kTile * (kKeyBytes + kValueBytes);
constexpr int kShared = 2 * kStageBytes;

// Positions first .. first + kTile - 1 of a head.
__device__ void bring_tile(const PromptArgs& a, int64_t head, int64_t first, uint32_t stage) {
  const uint16_t* const keys = a.keys + head * a.length * kNope;
  const uint16_t* const values = a.values + head * a.length * kValue;
  constexpr int kChunks = (kKey + kValue) / 8;  // of a position: 16 nope, 8 rope, 16 value
#pragma unroll
  for (int k = 0; k < kTile * kChunks / kThreads; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    // 40 threads a position would scatter; each of the three parts has its own run of threads.
    int row = 0;
    int chunk = 0;
    const uint16_t* from = nullptr;
    uint32_t to = stage;
    if (k < 4) {
      row = i / 16;
      chunk = i % 16;
      from = keys + (first + row) * kNope + 8 * chunk;
      to += swizzled(row, chunk, kKeyBytes);
    } else if (k < 6) {
      row = (i - 4 * kThreads) / 8;
      chunk = i % 8;
      from = a.rope + (first + row) * kRope + 8 * chunk;
      to += swizzled(row, 16 + chunk, kKeyBytes);
    } else {
      row = (i - 6 * kThreads) / 16;
      chunk = i % 16;
      from = values + (first + row) * kValue + 8 * chunk;
      to += kTile * kKeyBytes + swizzled(row, chunk, kValueBytes);
    }
    const bool is_there = first + row < a.length;
    copy_async(to, is_there ? from : keys, is_there);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

__global__ __launch_bounds__(kThreads, 1) void mla_prompt_kernel(const PromptArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t stages = shared_address(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t head = blockIdx.x;
  // The blocks with most positions first.
  const int64_t block = gridDim.y - 1 - blockIdx.y;
  const int64_t block_end = min(a.tokens, (block + 1) * kRows);
  const int64_t row = block * kRows + 16 * warp + lane / 4;  // this lane's tokens: row, row + 8
  const int64_t end = a.first_position + block_end;          // positions that the block sees
  const int64_t warp_first = a.first_position + block * kRows + 16 * warp;
  const float scale = a.softmax_scale * kLog2E;
  let_next_start();
  wait_for_previous();
  bring_tile(a, head, 0, stages);

  uint32_t q[kKey / 16][4];
  load_queries(a, head, row, lane, q);

  float4 out[kValue / 8];
#pragma unroll
  for (float4& o : out) o = make_float4(0, 0, 0, 0);
  float peak[2] = {-INFINITY, -INFINITY};  // times log2 e
  float sum[2] = {0, 0};                   // this lane's share
  int stage = 0;
  for (int64_t first = 0; first < end; first += kTile, stage ^= 1) {
    if (first + kTile < end) {
      bring_tile(a, head, first + kTile, stages + (stage ^ 1) * kStageBytes);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    // Positions behind all of the warp's tokens are none of its business.
    if (first <= warp_first + 15) {
      const uint32_t keys = stages + stage * kStageBytes;
      const uint32_t values = keys + kTile * kKeyBytes;
      float4 score[kTile / 8];
#pragma unroll
      for (float4& s : score) s = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int step = 0; step < kKey / 16; ++step) {
#pragma unroll
        for (int n = 0; n < kTile / 16; ++n) {
          uint32_t b[4];
          load_matrices(b, keys + swizzled(16 * n + lane / 16 * 8 + lane % 8,
                                           2 * step + lane / 8 % 2, kKeyBytes));
          mma_bf16(score[2 * n], q[step], b[0], b[1]);
          mma_bf16(score[2 * n + 1], q[step], b[2], b[3]);
        }
      }
      const bool is_cut = first + kTile - 1 > warp_first;
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) {
        float* const s = &score[n].x;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[i] *= scale;
          const int64_t position = first + 8 * n + 2 * (lane % 4) + i % 2;
          if (is_cut && position > a.first_position + row + i / 2 * 8) s[i] = -INFINITY;
          largest[i / 2] = fmaxf(largest[i / 2], s[i]);
        }
      }
      float base[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
        const float grown = fmaxf(peak[r], largest[r]);
        base[r] = grown == -INFINITY ? 0 : grown;
        const float factor = fast_exp2(peak[r] - base[r]);
        peak[r] = grown;
        sum[r] *= factor;
#pragma unroll
        for (float4& o : out) {
          float* const pair = &o.x + 2 * r;
          pair[0] *= factor;
          pair[1] *= factor;
        }
      }
      uint32_t weights[kTile / 16][4];
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) {
        const float* const s = &score[n].x;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float low = fast_exp2(s[2 * r] - base[r]);
          const float high = fast_exp2(s[2 * r + 1] - base[r]);
          sum[r] += low + high;
          weights[n / 2][n % 2 * 2 + r] = bf16x2(low, high);
        }
      }
#pragma unroll
      for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
        for (int n = 0; n < kValue / 16; ++n) {
          uint32_t b[4];
          load_matrices_transposed(
              b, values + swizzled(16 * step + lane % 16, 2 * n + lane / 16, kValueBytes));
          mma_bf16(out[2 * n], weights[step], b[0], b[1]);
          mma_bf16(out[2 * n + 1], weights[step], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // the stage may be overwritten
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    const int64_t token = row + 8 * r;
    if (token >= a.tokens) continue;
    const float factor = 1 / sum[r];
    float* const to = a.out + token * a.out_stride + head * kValue + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n) {
      const float* const pair = &out[n].x + 2 * r;
      to[8 * n] = pair[0] * factor;
      to[8 * n + 1] = pair[1] * factor;
    }
  }
}

__device__ uint32_t bf16_pair_of_e4m3(uint32_t bytes) {
  const auto value = [](uint32_t byte) {
    const __half_raw half =
        __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(byte), __NV_E4M3);
    return __half2float(__half(half));
  };
  return static_cast<uint32_t>(bf16_bits(value(bytes & 0xff))) |
         static_cast<uint32_t>(bf16_bits(value(bytes >> 8 & 0xff))) << 16;
}

// A thread for each 8 values of a position.
template <typename T>
__global__ void gather_latents_kernel(const AttendArgs a, int64_t token, int64_t length,
                                      uint16_t* latents, uint16_t* rope) {
  let_next_start();
  wait_for_previous();
  constexpr int kChunks = kEntry / 8;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= length * kChunks) return;
  const int64_t position = index / kChunks;
  const int chunk = static_cast<int>(index % kChunks);
  const TokenView view = a.views[token];
  const int64_t slot = position + view.slot_offset;
  const int64_t block = a.tables[view.table + slot / a.cache.block_size];
  const T* const from = static_cast<const T*>(a.cache.data) +
                        (block * a.cache.block_size + slot % a.cache.block_size) * kEntry +
                        8 * chunk;
  uint4 values;
  if constexpr (sizeof(T) == 2) {
    values = *reinterpret_cast<const uint4*>(from);
  } else {
    const uint2 bytes = *reinterpret_cast<const uint2*>(from);
    values = make_uint4(bf16_pair_of_e4m3(bytes.x), bf16_pair_of_e4m3(bytes.x >> 16),
                        bf16_pair_of_e4m3(bytes.y), bf16_pair_of_e4m3(bytes.y >> 16));
  }
  uint16_t* const to = chunk < kRank / 8 ? latents + position * kRank + 8 * chunk
                                         : rope + position * kRope + 8 * chunk - kRank;
  *reinterpret_cast<uint4*>(to) = values;
}

}  // namespace

bool mla_prompt_fits(const MlaShape& shape, const KvCacheView& cache) {
  return mla_decode_fits(shape, cache) && shape.qk_nope_head_dim == kNope &&
         shape.v_head_dim == kValue;
}

cudaError_t launch_gather_latents(const AttendArgs& attend, int64_t token, int64_t length,
                                  uint16_t* latents, uint16_t* rope, cudaStream_t stream) {
  const int64_t threads = length * (kEntry / 8);
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  return attend.cache.dtype == DType::kBf16
             ? launch_overlapped(gather_latents_kernel<uint16_t>, grid, dim3(kThreads), 0, stream,
                                 attend, token, length, latents, rope)
             : launch_overlapped(gather_latents_kernel<uint8_t>, grid, dim3(kThreads), 0, stream,
                                 attend, token, length, latents, rope);
}

cudaError_t launch_mla_prompt(const PromptArgs& args, cudaStream_t stream) {
  if (mla_prompt_wide_runs_here()) return launch_mla_prompt_wide(args, stream);
  const cudaError_t configured = allow_shared<mla_prompt_kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const dim3 grid(static_cast<unsigned>(args.heads),
                  static_cast<unsigned>((args.tokens + kRows - 1) / kRows));
  return launch_overlapped(mla_prompt_kernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace nibble::cuda
