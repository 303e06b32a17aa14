#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>

#include "nibble/kernels/cuda/cuda_level.h"

namespace nibble::cuda {
namespace {

__global__ void probe_kernel() {}

// The level that the code was made for, whatever it runs on; 0 where there is none.
int code_level() {
  cudaFuncAttributes attributes = {};
  const bool found = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  (void)cudaGetLastError();
  return found ? attributes.ptxVersion : 0;
}

struct Level {
  int level = 0;
  int code = 0;
};

const Level& level_here() {
  static const Level found = [] {
    Level here;
    here.code = code_level();
    int device = 0;
    int major = 0;
    int minor = 0;
    if (cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess) {
      here.level = std::min(10 * major + minor, here.code);
    }
    const char* const asked = std::getenv("NIBBLE_CUDA_LEVEL");
    if (const int level = asked != nullptr ? std::atoi(asked) : 0; level > 0) here.level = level;
    return here;
  }();
  return found;
}

}  // namespace

int cuda_level() { return level_here().level; }

bool has_hopper_kernels() { return level_here().level >= 90 && level_here().code >= 90; }

bool has_fp4_tensor_cores() { return level_here().level >= 100; }

int most_shared_bytes() {
  static const int most = [] {
    int device = 0;
    int bytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess) {
      bytes = 48 << 10;  // that every GPU has
    }
    const int level = cuda_level();
    const bool is_small = level == 86 || level == 89 || level / 10 == 12;
    return std::min(bytes, (is_small ? 99 : level < 90 ? 163 : 227) << 10);
  }();
  return most;
}

bool has_code_for_gpu() { return code_level() > 0; }

}  // namespace nibble::cuda
