// Every rank puts its vector where the others can read it, tells them, waits for their word, and
// adds all vectors up itself; with rows that are added to a residual stream and normed, it does so,
// too. Bound: the latency of two trips over the link, and of a cluster's barrier for a norm
// (docs/parallel.md: 6.9 us for a row on two H200, of which a sum takes 5.3).
#include "nibble/comm/cuda/one_shot.h"
#include "nibble/device/cuda/bf16_parts.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 64;  // of float4: 256 values at a time
constexpr uint64_t kPatienceNs = 60'000'000'000;

// Programmatic dependent launch, which came with compute capability 9.0.
__device__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Whether the kernel's code was made for compute capability 9.0 or later.
template <typename Kernel>
bool is_hopper_code(Kernel kernel) {
  cudaFuncAttributes attributes = {};
  const bool found = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  (void)cudaGetLastError();
  return found && attributes.ptxVersion >= 90;
}

__device__ void store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ uint64_t now_ns() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}
// Past the caches: another GPU wrote it.
__device__ float4 load_peer(const float4* address) {
  float4 v;
  asm volatile("ld.volatile.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

__device__ uint32_t* flag(std::byte* shared, int rank) {
  return reinterpret_cast<uint32_t*>(shared) + blockIdx.x * kMaxOneShotRanks + rank;
}

// Counts run over: b - a is what is compared.
__device__ bool is_before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

// Tells the others that this block's data of `turn` is ready, and waits for theirs. Flags lie at
// the start of what a rank shares.
__device__ void meet(std::byte* const (&shared)[kMaxOneShotRanks], int rank, int size,
                     uint32_t turn) {
  __threadfence_system();
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < size && peer != rank) {
    store_release(flag(shared[peer], rank), turn);
    const uint64_t begun = now_ns();
    while (is_before(load_acquire(flag(shared[rank], peer)), turn)) {
      if (now_ns() - begun > kPatienceNs) __trap();
    }
  }
  __syncthreads();
}

__device__ void add(float4& sum, const float4& v) {
  sum.x = __fadd_rn(sum.x, v.x);
  sum.y = __fadd_rn(sum.y, v.y);
  sum.z = __fadd_rn(sum.z, v.z);
  sum.w = __fadd_rn(sum.w, v.w);
}

__global__ void __launch_bounds__(kThreads) one_shot_sum_kernel(const OneShotArgs a) {
  // Launched while what is in front of it still runs (programmatic dependent launch), as what
  // follows is.
  let_next_start();
  wait_for_previous();
  const uint32_t turn = a.counters[blockIdx.x] + 1;
  const auto half = [&](int rank) {
    return reinterpret_cast<float*>(a.shared[rank] + OneShotLayout::kFlagBytes) +
           (turn & 1) * a.capacity;
  };
  // A block has whole groups of four; what is left of the last group is taken one by one.
  const int64_t groups = (a.count + 3) / 4;
  const int64_t each = (groups + gridDim.x - 1) / gridDim.x;
  const int64_t begin = each * blockIdx.x;
  const int64_t end = min(begin + each, groups);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    if (4 * i + 4 <= a.count) {
      reinterpret_cast<float4*>(half(a.rank))[i] = reinterpret_cast<const float4*>(a.x)[i];
    } else {
      for (int64_t k = 4 * i; k < a.count; ++k) half(a.rank)[k] = a.x[k];
    }
  }
  meet(a.shared, a.rank, a.size, turn);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float4 sum = load_peer(reinterpret_cast<const float4*>(half(0)) + i);
    for (int r = 1; r < a.size; ++r) {
      add(sum, load_peer(reinterpret_cast<const float4*>(half(r)) + i));
    }
    if (4 * i + 4 <= a.count) {
      reinterpret_cast<float4*>(a.x)[i] = sum;
    } else {
      const float values[4] = {sum.x, sum.y, sum.z, sum.w};
      for (int64_t k = 4 * i; k < a.count; ++k) a.x[k] = values[k - 4 * i];
    }
  }
  if (threadIdx.x == 0) a.counters[blockIdx.x] = turn;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// A value of this block's shared memory in that of another of the cluster.
__device__ double value_of(const double* mine, int block) {
  uint32_t address;
  double value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(block));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(address) : "memory");
  return value;
}

__device__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}
#endif

__global__ void __launch_bounds__(kNormThreads) one_shot_norm_kernel(const OneShotNormArgs a) {
  __shared__ double warp_squares[kNormRowsOfCluster][kNormThreads / 32];
  __shared__ double squares[kNormRowsOfCluster];
#if __CUDA_ARCH__ >= 900
  let_next_start();
  const SumNorm& w = a.work;
  const int cluster = static_cast<int>(blockIdx.x) / kNormClusterBlocks;
  const int thread = static_cast<int>(threadIdx.x);
  // float4s of a row: a block has `each` of them
  const int quads = static_cast<int>(w.cols / 4);
  const int each = (quads + kNormClusterBlocks - 1) / kNormClusterBlocks;
  const int quad = static_cast<int>(blockIdx.x) % kNormClusterBlocks * each + thread;
  const bool has_any = thread < each && quad < quads;
  const float4 weight =
      has_any ? reinterpret_cast<const float4*>(w.weight)[quad] : make_float4(0, 0, 0, 0);
  const auto row_of = [&](int j) { return int64_t{cluster} + int64_t{j} * kNormClusters; };
  wait_for_previous();
  // Rows without work: of the whole cluster, on all ranks. Its blocks take no turn.
  if (cluster >= w.rows) return;
  const uint32_t turn = a.counters[blockIdx.x] + 1;
  const auto half = [&](int rank) {
    return reinterpret_cast<float4*>(a.shared[rank] + NormLayout::kFlagBytes) +
           (int64_t{turn & 1} * kNormBlocks + blockIdx.x) * (NormLayout::kBlockFloats / 4) + thread;
  };
  float4 own[kNormRowsOfCluster];
  float4 x[kNormRowsOfCluster];
#pragma unroll
  for (int j = 0; j < kNormRowsOfCluster; ++j) {
    own[j] = x[j] = make_float4(0, 0, 0, 0);
    if (!has_any || row_of(j) >= w.rows) continue;
    own[j] = reinterpret_cast<const float4*>(w.y + row_of(j) * w.cols)[quad];
    x[j] = reinterpret_cast<const float4*>(w.x + row_of(j) * w.x_stride)[quad];
    half(a.rank)[j * kNormThreads] = own[j];
  }
  meet(a.shared, a.rank, a.size, turn);
#pragma unroll
  for (int j = 0; j < kNormRowsOfCluster; ++j) {
    const bool has = has_any && row_of(j) < w.rows;
    double sum_of_squares = 0;
    if (has) {
      float4 parts[kMaxOneShotRanks];
#pragma unroll
      for (int r = 0; r < kMaxOneShotRanks; ++r) {
        if (r < a.size && r != a.rank) parts[r] = load_peer(half(r) + j * kNormThreads);
      }
      float4 sum = a.rank == 0 ? own[j] : parts[0];
#pragma unroll
      for (int r = 1; r < kMaxOneShotRanks; ++r) {
        if (r < a.size) add(sum, r == a.rank ? own[j] : parts[r]);
      }
      add(x[j], sum);
      reinterpret_cast<float4*>(w.x + row_of(j) * w.x_stride)[quad] = x[j];
      const auto square = [](float v) { return static_cast<double>(v) * static_cast<double>(v); };
      sum_of_squares = square(x[j].x) + square(x[j].y) + square(x[j].z) + square(x[j].w);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      sum_of_squares += __shfl_xor_sync(~0u, sum_of_squares, offset);
    }
    if (thread % 32 == 0) warp_squares[j][thread / 32] = sum_of_squares;
  }
  __syncthreads();
  if (thread < kNormRowsOfCluster) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kNormThreads / 32; ++i) sum += warp_squares[thread][i];
    squares[thread] = sum;
  }
  sync_cluster();
#pragma unroll
  for (int j = 0; j < kNormRowsOfCluster; ++j) {
    if (!has_any || row_of(j) >= w.rows) continue;
    double parts[kNormClusterBlocks];
#pragma unroll
    for (int b = 0; b < kNormClusterBlocks; ++b) parts[b] = value_of(&squares[j], b);
    double sum = 0;
#pragma unroll
    for (int b = 0; b < kNormClusterBlocks; ++b) sum += parts[b];
    const double scale =
        1 / sqrt(sum / static_cast<double>(w.cols) + static_cast<double>(w.epsilon));
    const auto normed = [&](float v, float by) {
      return static_cast<float>(static_cast<double>(v) * scale * static_cast<double>(by));
    };
    const float4 out = make_float4(normed(x[j].x, weight.x), normed(x[j].y, weight.y),
                                   normed(x[j].z, weight.z), normed(x[j].w, weight.w));
    reinterpret_cast<float4*>(w.out + row_of(j) * w.out_stride)[quad] = out;
    float4 rest = out;
#pragma unroll 1
    for (int part = 0; a.copy.data != nullptr && part < a.copy.parts; ++part) {
      const ushort4 bits = make_ushort4(bf16_rounded(rest.x), bf16_rounded(rest.y),
                                        bf16_rounded(rest.z), bf16_rounded(rest.w));
      reinterpret_cast<ushort4*>(a.copy.data + part * a.copy.part_stride +
                                 row_of(j) * a.copy.row_stride)[quad] = bits;
      rest = make_float4(bf16_rest(rest.x, bits.x), bf16_rest(rest.y, bits.y),
                         bf16_rest(rest.z, bits.z), bf16_rest(rest.w, bits.w));
    }
  }
  if (thread == 0) a.counters[blockIdx.x] = turn;
  sync_cluster();  // the others have read this block's squares
#endif
}

}  // namespace

bool one_shot_norm_takes(int64_t rows, int64_t cols) {
  return rows > 0 && rows <= kMaxNormRows && cols > 0 && cols <= kMaxNormCols && cols % 4 == 0;
}

namespace {

// A launch of so many clusters; `attributes` has room for two.
cudaLaunchConfig_t norm_config(int clusters, cudaStream_t stream,
                               cudaLaunchAttribute (&attributes)[2]) {
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kNormClusterBlocks, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(clusters * kNormClusterBlocks));
  config.blockDim = dim3(kNormThreads);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return config;
}

}  // namespace

bool one_shot_norm_runs_here() {
  if (!is_hopper_code(one_shot_norm_kernel)) return false;  // an empty kernel
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = norm_config(kNormClusters, nullptr, attributes);
  config.numAttrs = 1;  // the cluster
  int clusters = 0;
  const bool is_known =
      cudaOccupancyMaxActiveClusters(&clusters, one_shot_norm_kernel, &config) == cudaSuccess;
  (void)cudaGetLastError();
  return is_known && clusters > 0;
}

cudaError_t launch_one_shot_norm(const OneShotNormArgs& args, cudaStream_t stream) {
  const SumNorm& w = args.work;
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!one_shot_norm_takes(w.rows, w.cols) || w.x_stride % 4 != 0 || w.out_stride % 4 != 0 ||
      !is_aligned(w.y) || !is_aligned(w.x) || !is_aligned(w.weight) || !is_aligned(w.out)) {
    return cudaErrorInvalidValue;
  }
  // Blocks of rows that are not there would only come and go.
  const int clusters = w.rows < kNormClusters ? static_cast<int>(w.rows) : kNormClusters;
  cudaLaunchAttribute attributes[2] = {};
  const cudaLaunchConfig_t config = norm_config(clusters, stream, attributes);
  return cudaLaunchKernelEx(&config, one_shot_norm_kernel, args);
}

cudaError_t launch_one_shot_sum(const OneShotArgs& args, cudaStream_t stream) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  // Always the same blocks, so that all their counters agree on whose turn it is.
  config.gridDim = dim3(kOneShotBlocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  static const bool overlaps = is_hopper_code(one_shot_sum_kernel);
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, one_shot_sum_kernel, args);
}

}  // namespace nibble::cuda
