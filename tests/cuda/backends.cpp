// tests/kernels/*_test.cpp, compiled once more against the GPU: with all 24 bits of the activations
// the cuda backend keeps the same bounds as the others. What is rounded to BF16 in the default mode
// is tested in bf16_test.cpp.
#include "tests/kernels/backends.h"

#include <string>

#include "nibble/base/check.h"
#include "nibble/kernels/registry.h"
#include "tests/cuda/host_side_cuda.h"

namespace nibble {

std::vector<TestBackend> cpu_backends(int /*threads*/) {
  std::vector<TestBackend> backends;
  backends.push_back({"cuda", make_host_side_cuda(3)});
  return backends;
}

std::vector<TestBackend> available_backends() { return cpu_backends(1); }

std::vector<TestBackend> all_backends() { return available_backends(); }

}  // namespace nibble
