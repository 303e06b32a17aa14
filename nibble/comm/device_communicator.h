// Collectives in the memory that a model runs in.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/comm/communicator.h"
#include "nibble/device/device.h"

namespace nibble {

// The communicator of the same ranks for the memory of `device`, whose operations are in order with
// the other work there; null where the host sees that memory, so that `host` serves. Both must
// outlive it; all ranks call this together. Errors: those of cuda_communicator().
Result<std::unique_ptr<Communicator>> device_communicator(Device& device, Communicator& host);

}  // namespace nibble
