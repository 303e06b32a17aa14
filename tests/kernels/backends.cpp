#include "tests/kernels/backends.h"

#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/registry.h"

namespace nibble {

std::vector<TestBackend> cpu_backends(int threads) {
  std::vector<TestBackend> backends;
  for (const Isa isa : kAllIsas) {
    if (isa > detected_isa()) continue;
    KernelOptions options;
    options.isa = isa;
    options.threads = threads;
    auto kernels = make_kernels("cpu", options);
    NIBBLE_CHECK(kernels.has_value());
    std::string name((*kernels)->name());
    backends.push_back({std::move(name), *std::move(kernels)});
  }
  auto tiles =
      std::make_unique<CpuKernels>(std::min(detected_isa(), Isa::kAvx512Vnni), threads,
                                   CpuKernels::kMoeScratchFloats, false, &kTileIsaPortable);
  std::string name(tiles->name());
  backends.push_back({std::move(name), std::move(tiles)});
  return backends;
}

std::vector<TestBackend> available_backends() { return cpu_backends(2); }

std::vector<TestBackend> all_backends() {
  std::vector<TestBackend> backends = available_backends();
  auto reference = make_kernels("reference");
  NIBBLE_CHECK(reference.has_value());
  backends.push_back({"reference", *std::move(reference)});
  return backends;
}

}  // namespace nibble
