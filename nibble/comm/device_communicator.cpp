#include "nibble/comm/device_communicator.h"

#include "nibble/base/error.h"

#ifdef NIBBLE_HAVE_CUDA
#include "nibble/comm/cuda/cuda_communicator.h"
#endif

namespace nibble {

Result<std::unique_ptr<Communicator>> device_communicator(Device& device,
                                                          [[maybe_unused]] Communicator& host) {
  if (device.is_host()) return std::unique_ptr<Communicator>();
#ifdef NIBBLE_HAVE_CUDA
  return cuda_communicator(device, host);
#else
  return unsupported("this build has no collectives for a GPU");
#endif
}

}  // namespace nibble
