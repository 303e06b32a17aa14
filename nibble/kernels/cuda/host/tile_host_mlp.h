// Experts in the cuda backend's layout, computed by the host.
#pragma once

#include <memory>

#include "nibble/kernels/host_mlp.h"

namespace nibble::cuda {

// num_threads >= 1. `fast`: with the vector code that this machine has; without it by plain loops,
// which are the definition.
std::unique_ptr<HostMlp> make_tile_host_mlp(int num_threads, bool fast = true);

// Whether make_tile_host_mlp() has vector code here: x86-64 with AVX-512 and BF16.
bool has_fast_tiles();

}  // namespace nibble::cuda
