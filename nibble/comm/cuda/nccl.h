// NCCL, found when the program runs.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <type_traits>

#include "nibble/base/result.h"

namespace nibble::cuda {

// The part of NCCL 2's interface that is used, with its binary layout (nccl.h 2.x), so that no
// header of it is needed to build.
struct NcclUniqueId {
  char internal[128];
};
enum class NcclResult : int { kSuccess = 0, kInProgress = 7 };
enum class NcclType : int { kInt8 = 0, kFloat32 = 7 };
enum class NcclOp : int { kSum = 0 };
using NcclComm = struct ncclComm*;

struct Nccl {
  NcclResult (*get_version)(int*) = nullptr;
  NcclResult (*get_unique_id)(NcclUniqueId*) = nullptr;
  NcclResult (*comm_init_rank)(NcclComm*, int, NcclUniqueId, int) = nullptr;
  NcclResult (*comm_destroy)(NcclComm) = nullptr;
  NcclResult (*comm_abort)(NcclComm) = nullptr;
  const char* (*get_error_string)(NcclResult) = nullptr;
  NcclResult (*all_reduce)(const void*, void*, size_t, NcclType, NcclOp, NcclComm,
                           cudaStream_t) = nullptr;
  NcclResult (*all_gather)(const void*, void*, size_t, NcclType, NcclComm, cudaStream_t) = nullptr;
  NcclResult (*reduce_scatter)(const void*, void*, size_t, NcclType, NcclOp, NcclComm,
                               cudaStream_t) = nullptr;
  NcclResult (*reduce)(const void*, void*, size_t, NcclType, NcclOp, int, NcclComm,
                       cudaStream_t) = nullptr;
  NcclResult (*broadcast)(const void*, void*, size_t, NcclType, int, NcclComm,
                          cudaStream_t) = nullptr;
  NcclResult (*send)(const void*, size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  NcclResult (*recv)(void*, size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  NcclResult (*group_start)() = nullptr;
  NcclResult (*group_end)() = nullptr;

  // Once in a process; later calls give the same. Errors: kUnsupported with what to install.
  static Result<const Nccl*> find();
};

}  // namespace nibble::cuda
