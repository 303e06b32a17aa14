// The cuda backend behind an interface of host memory, so that the tests of the other backends run
// on it as they are: every operation gets copies of its matrices in memory that both sides see.
#pragma once

#include <memory>

#include "nibble/kernels/kernels.h"

namespace nibble {

// A GPU and a build for it are there (tests/cuda/environment.cpp saw to that).
std::unique_ptr<Kernels> make_host_side_cuda(int activation_parts, bool batch_invariant = false);

}  // namespace nibble
