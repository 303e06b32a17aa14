// Ranks that are threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "nibble/comm/communicator.h"

namespace nibble {

// `size` >= 1 communicators of one group, entry r for rank r; each goes to a thread of its own.
// Data is read where the peer has it: nothing is copied twice. When one is destroyed while others
// still have something to say to it, their operations fail.
std::vector<std::unique_ptr<Communicator>> thread_communicators(int size);

}  // namespace nibble
