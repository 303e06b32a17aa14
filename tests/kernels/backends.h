// The backends that every operation is tested on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "nibble/kernels/kernels.h"

namespace nibble {

struct TestBackend {
  std::string name;
  std::unique_ptr<Kernels> kernels;
};

// The cpu backend at every instruction set that this machine has, and with the plain loops of
// tiles, on two threads. The reference is not among them: it is what they are compared with.
std::vector<TestBackend> available_backends();

// available_backends() and the reference: for expectations worked by hand.
std::vector<TestBackend> all_backends();

// The cpu backend at every instruction set and with the plain loops of tiles, with this many
// threads.
std::vector<TestBackend> cpu_backends(int threads);

}  // namespace nibble
