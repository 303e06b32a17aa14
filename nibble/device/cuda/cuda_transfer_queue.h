// TransferQueue of an NVIDIA GPU: streams of its own, ordered with the device's by events.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "nibble/base/result.h"
#include "nibble/device/transfer_queue.h"

namespace nibble {

// For GPU `ordinal`, whose work is ordered on `stream`. Large copies are cut among num_streams (1
// or 2). Errors: kUnavailable with CUDA's words.
Result<std::unique_ptr<TransferQueue>> make_cuda_transfer_queue(int ordinal, cudaStream_t stream,
                                                                int num_streams);

}  // namespace nibble
