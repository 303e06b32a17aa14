// The backends of this build, by name.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "nibble/base/cpu_features.h"
#include "nibble/base/result.h"
#include "nibble/kernels/cuda_options.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

struct KernelOptions {
  int threads = 0;         // of the cpu backend; 0: one for each available processor
  std::optional<Isa> isa;  // of the cpu backend; by default selected_isa()
  // Of the cpu backend: NVFP4 weights meet activations as 8-bit integers, not as 16-bit ones.
  bool cpu_int8_activations = false;
  // Of the cpu backend at the AMX level: activations keep 16 bits and more, not BF16's 8. The
  // levels below always do.
  bool cpu_exact_activations = false;
  CudaOptions cuda;  // of the cuda backend
};

// "reference", "cpu", "cuda" (the first GPU), or "auto", which is "cpu": nothing moves to a GPU
// unasked.
//
// Errors: kUnsupported for "cuda" in a build without it, for a GPU that it has no code for and for
// an instruction set that this machine lacks; kNotFound for "cuda" without a GPU; kInvalidArgument
// for an unknown backend, a negative or absurd number of threads, or a bad NIBBLE_ISA.
Result<std::unique_ptr<Kernels>> make_kernels(std::string_view backend,
                                              const KernelOptions& options = {});

}  // namespace nibble
