// TransferQueue of an NVIDIA GPU: streams of its own, ordered with the device's by events.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/device/transfer_queue.h"

namespace nibble {

// For `device`, GPU `ordinal`, which must outlive it. Large copies are cut among num_streams (1 or
// 2). Errors: kUnavailable with CUDA's words; those of copies are kept for the device, too.
Result<std::unique_ptr<TransferQueue>> make_cuda_transfer_queue(Device& device, int ordinal,
                                                                int num_streams);

}  // namespace nibble
