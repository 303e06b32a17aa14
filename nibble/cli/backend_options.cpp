#include "nibble/cli/backend_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

void add_to(CLI::Option* option, const std::string& group) {
  if (!group.empty()) option->group(group);
}

CudaOptions cuda_options(const BackendOptions& options) {
  return {.activation_parts = options.cuda_exact_activations ? 3 : 1,
          .batch_invariant = options.cuda_batch_invariant};
}

}  // namespace

void add_kernel_options(CLI::App& command, BackendOptions* o, const std::string& group) {
  add_to(command.add_option("--backend", o->backend, "auto, cpu, cuda or reference [auto]")
             ->type_name("NAME"),
         group);
  add_to(command.add_option("--threads", o->threads, "Threads [all processors]")->type_name("N"),
         group);
  add_to(
      command.add_flag("--cpu-int8-activations", o->cpu_int8_activations,
                       "On cpu without AMX: activations of 8 bits, not of 16, for NVFP4 weights"),
      group);
  add_to(command.add_flag("--cpu-exact-activations", o->cpu_exact_activations,
                          "On cpu with AMX: activations of 16 bits and more, as without, not BF16"),
         group);
  add_to(command.add_flag("--cuda-batch-invariant", o->cuda_batch_invariant,
                          "On cuda: the same bits in every batch, at some cost"),
         group);
  add_to(command.add_flag("--cuda-exact-activations", o->cuda_exact_activations,
                          "On cuda: products of 24 bits of the activations, not of BF16"),
         group);
}

void add_backend_options(CLI::App& command, BackendOptions* o, const std::string& group) {
  add_kernel_options(command, o, group);
  add_to(command
             .add_option("--weight-cache", o->weight_cache,
                         "On cpu: packed weights are kept in DIR, and mapped by the next start")
             ->type_name("DIR"),
         group);
  add_to(command.add_flag("--disable-cuda-graphs", o->disable_cuda_graphs,
                          "On cuda: launch every kernel of a step by itself"),
         group);
  add_to(command
             .add_option("--cuda-graph-batch-sizes", o->cuda_graph_batch_sizes,
                         "On cuda: batch sizes recorded as graphs at the start [as they come]")
             ->delimiter(',')
             ->type_name("N,N,..."),
         group);
}

Status validate(const BackendOptions& options) {
  const std::vector<std::string> known = {"auto", "cpu", "cuda", "reference"};
  if (std::find(known.begin(), known.end(), options.backend) == known.end()) {
    return invalid_argument(
        fmt::format("--backend is '{}', expected auto, cpu, cuda or reference{}", options.backend,
                    did_you_mean(options.backend, known)));
  }
  if (options.threads < 0 || options.threads > 1024) {  // what make_kernels takes
    return invalid_argument(
        fmt::format("--threads is {}, expected 1..1024, or 0 for all processors", options.threads));
  }
  if (options.cpu_int8_activations && options.cpu_exact_activations) {
    return invalid_argument(
        "--cpu-int8-activations and --cpu-exact-activations exclude each other; give one");
  }
  for (const int64_t size : options.cuda_graph_batch_sizes) {
    if (size < 1 || size > 65536) {
      return invalid_argument(
          fmt::format("--cuda-graph-batch-sizes has {}, expected 1..65536", size));
    }
  }
  if (options.disable_cuda_graphs && !options.cuda_graph_batch_sizes.empty()) {
    return invalid_argument(
        "--disable-cuda-graphs and --cuda-graph-batch-sizes exclude each other; give one");
  }
  return {};
}

KernelOptions kernel_options(const BackendOptions& options) {
  KernelOptions kernels;
  kernels.threads = options.threads;
  kernels.cpu_int8_activations = options.cpu_int8_activations;
  kernels.cpu_exact_activations = options.cpu_exact_activations;
  kernels.cuda = cuda_options(options);
  return kernels;
}

std::string gpu_summary(const EngineStats& stats) {
  std::string text = fmt::format("{} passes recorded, {} replayed", stats.graphs.num_recorded,
                                 stats.graphs.num_replayed);
  if (stats.replayed_step_seconds > 0) {
    text += fmt::format(", the GPU busy with them for {:.1f} % of those steps",
                        100 * stats.graphs.device_seconds / stats.replayed_step_seconds);
  }
  return text + fmt::format("; {} of {} windows sampled by the host", stats.num_host_windows,
                            stats.num_device_windows);
}

void apply(const BackendOptions& options, ModelOptions* model) {
  model->backend = options.backend;
  model->threads = options.threads;
  model->cpu_int8_activations = options.cpu_int8_activations;
  model->cpu_exact_activations = options.cpu_exact_activations;
  model->weight_cache = options.weight_cache;
  model->cuda = cuda_options(options);
}

void apply(const BackendOptions& options, EngineOptions* engine) {
  engine->cuda_graphs = !options.disable_cuda_graphs;
  engine->cuda_graph_batch_sizes = options.cuda_graph_batch_sizes;
}

}  // namespace nibble
