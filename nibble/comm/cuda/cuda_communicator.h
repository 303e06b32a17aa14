// Ranks that are GPUs.
#pragma once

#include <cstddef>
#include <memory>

#include "nibble/base/result.h"
#include "nibble/comm/communicator.h"
#include "nibble/device/device.h"

namespace nibble {

struct CudaCommunicatorOptions {
  // Sums of up to so many bytes take one kernel in which every GPU reads the others' memory; above,
  // and where GPUs can't reach each other's memory, NCCL. 0: always NCCL.
  size_t one_shot_bytes = 64 * 1024;
  // Sums of up to so many rows that a residual add and a norm follow take one kernel for all three,
  // of up to 32 rows; above, or 0: the sum, then the norm.
  int64_t one_shot_norm_rows = 16;
};

// Collectives on the memory of `device`, which make_cuda_device made, in order with the other work
// on its stream; they don't wait, and may be captured into a graph. `host` joins the same ranks
// over host memory: they meet over it, once, and abort() goes to it, too. Both must outlive the
// communicator. All ranks call this together.
//
// Sums by the one-shot kernel are those of Communicator, rank after rank; NCCL chooses its own
// order, always the same for the same sizes, and gives all ranks the same bits.
//
// NCCL is found when the program runs: libnccl.so.2, or the path in NIBBLE_NCCL. NVLink multicast
// (NVLS) is switched off unless NCCL_NVLS_ENABLE says otherwise.
//
// broadcast_message() is not for device memory: send messages over `host`.
//
// Errors, the same on all ranks: kUnsupported when a rank has no NCCL, with what to install;
// kUnavailable with NCCL's or CUDA's words.
Result<std::unique_ptr<Communicator>> cuda_communicator(
    Device& device, Communicator& host, const CudaCommunicatorOptions& options = {});

}  // namespace nibble
