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
  const auto add = [&](Isa isa, CpuActivations activations, const TileIsa* tiles) {
    auto kernels = std::make_unique<CpuKernels>(isa, threads, CpuKernels::kMoeScratchFloats,
                                                activations, tiles);
    std::string name(kernels->name());
    backends.push_back({std::move(name), std::move(kernels)});
  };
  const Isa below = std::min(detected_isa(), Isa::kAvx512Vnni);
  add(below, CpuActivations::kStandard, &kTileIsaPortable);
  add(below, CpuActivations::kExact, &kTileIsaPortable);
  if (detected_isa() == Isa::kAmx) add(Isa::kAmx, CpuActivations::kExact, nullptr);
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
