#include "nibble/kernels/registry.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/reference_kernels.h"

#ifdef NIBBLE_HAVE_CUDA
#include "nibble/kernels/cuda/cuda_kernels.h"
#endif

namespace nibble {
namespace {

constexpr int kMaxThreads = 1024;

Result<std::unique_ptr<Kernels>> make_cpu_kernels(const KernelOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return invalid_argument(fmt::format("{} threads asked for, expected 1 to {}, or 0 for all",
                                        options.threads, kMaxThreads));
  }
  const Isa isa = options.isa ? *options.isa : NIBBLE_TRY(selected_isa());
  if (isa > detected_isa()) {
    return unsupported(fmt::format("instruction set {} asked for, but this processor has only {}",
                                   isa_name(isa), isa_name(detected_isa())));
  }
  if (options.cpu_int8_activations && options.cpu_exact_activations) {
    return invalid_argument(
        "activations of 8 bits and exact ones were asked for; they exclude each other");
  }
  const int threads = options.threads == 0 ? available_processors() : options.threads;
  const CpuActivations activations = options.cpu_exact_activations  ? CpuActivations::kExact
                                     : options.cpu_int8_activations ? CpuActivations::kInt8
                                                                    : CpuActivations::kStandard;
  return std::make_unique<CpuKernels>(isa, threads, CpuKernels::kMoeScratchFloats, activations);
}

}  // namespace

Result<std::unique_ptr<Kernels>> make_kernels(std::string_view backend,
                                              const KernelOptions& options) {
  if (backend == "reference") return std::make_unique<ReferenceKernels>();
  if (backend == "cpu" || backend == "auto") return make_cpu_kernels(options);
  if (backend == "cuda") {
#ifdef NIBBLE_HAVE_CUDA
    return make_cuda_kernels(options.cuda);
#else
    return unsupported(
        "backend cuda is not part of this build, which has cpu and reference; build with "
        "tools/build.sh cuda on a machine with CUDA's nvcc");
#endif
  }
  const std::vector<std::string> known = {"auto", "cpu", "cuda", "reference"};
  return invalid_argument(
      fmt::format("unknown backend '{}', expected auto, cpu, cuda or reference{}", backend,
                  did_you_mean(backend, known)));
}

}  // namespace nibble
