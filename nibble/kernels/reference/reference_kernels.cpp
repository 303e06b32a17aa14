#include "nibble/kernels/reference/reference_kernels.h"

namespace nibble {

ReferenceKernels::ReferenceKernels() : device_(make_host_device()) {}
ReferenceKernels::~ReferenceKernels() = default;

}  // namespace nibble
