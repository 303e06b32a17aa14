// The backend that a command runs a model on, for every command that runs one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/engine/engine.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/kernels/registry.h"

namespace CLI {
class App;
}

namespace nibble {

struct BackendOptions {
  std::string backend = "auto";  // auto, cpu, cuda, reference
  int threads = 0;               // of the processor; 0: all
  bool cpu_int8_activations = false;
  bool cpu_exact_activations = false;
  std::string weight_cache;  // directory; empty: none
  bool cuda_batch_invariant = false;
  bool cuda_exact_activations = false;
  bool disable_cuda_graphs = false;
  std::vector<int64_t> cuda_graph_batch_sizes;  // empty: as they come
};

// Registers --backend, --threads, --cpu-int8-activations, --cpu-exact-activations,
// --cuda-batch-invariant and --cuda-exact-activations, for what runs the kernels alone, such as
// calibration.
void add_kernel_options(CLI::App& command, BackendOptions* options, const std::string& group = "");

// Those, and what an engine needs beside them: --weight-cache, --disable-cuda-graphs,
// --cuda-graph-batch-sizes.
void add_backend_options(CLI::App& command, BackendOptions* options, const std::string& group = "");

// Errors: kInvalidArgument naming the option and its range, or the unknown backend.
Status validate(const BackendOptions& options);

// What make_kernels() takes beside options.backend.
KernelOptions kernel_options(const BackendOptions& options);

// "3 passes recorded, 40 replayed, the GPU busy for 98.1 % of those steps; 0 of 41 windows sampled
// by the host".
std::string gpu_summary(const EngineStats& stats);

// Sets what `options` says in a model's and in an engine's options.
void apply(const BackendOptions& options, ModelOptions* model);
void apply(const BackendOptions& options, EngineOptions* engine);

}  // namespace nibble
