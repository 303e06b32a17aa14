// Launches that may start before the one in front of them has ended (programmatic dependent
// launch), which hides the latency of a launch and lets weights be fetched early.
//
// A kernel launched so calls wait_for_previous() before it touches anything that earlier work wrote
// or still reads; nothing else may come before but fetching weights. As every kernel of a chain
// waits for the one in front of it, it waits for all. Before level 90 launches do not overlap.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "nibble/kernels/cuda/cuda_level.h"

namespace nibble::cuda {

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Of the current device; 1 where it can't be asked.
inline int multiprocessors() {
  int count = 0;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

// Whether the build has a body of the kernel for the current device: for other architectures those
// on wgmma are empty, of few registers.
template <typename Kernel>
bool has_body(Kernel kernel) {
  cudaFuncAttributes attributes = {};
  const bool found = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  (void)cudaGetLastError();
  return found && attributes.numRegs > 64;
}

// Lets the kernel take so many bytes of dynamic shared memory: asked for once on each device.
template <auto kKernel>
cudaError_t allow_shared(int bytes) {
  static std::atomic<uint64_t> allowed{0};  // a bit for a device
  int device = 0;
  const cudaError_t found = cudaGetDevice(&device);
  if (found != cudaSuccess) return found;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  const cudaError_t code =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (code == cudaSuccess && device < 64) allowed.fetch_or(bit, std::memory_order_relaxed);
  return code;
}

// As launch_overlapped, in clusters of `cluster` neighbouring blocks, which grid.x is a multiple
// of.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                            int cluster, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : has_hopper_kernels() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel,
                            static_cast<Parameters>(std::forward<Arguments>(arguments))...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                              cudaStream_t stream, Arguments&&... arguments) {
  return launch_clusters(kernel, grid, block, shared, 1, stream,
                         std::forward<Arguments>(arguments)...);
}

}  // namespace nibble::cuda
