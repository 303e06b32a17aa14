// A checkpoint loaded for one backend, with its tokenizer: what every way of running starts from.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/engine/expert_options.h"
#include "nibble/kernels/cuda_options.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/expert_store.h"
#include "nibble/model/weights.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

struct ModelOptions {
  std::string backend = "auto";       // auto, cpu, cuda, reference
  CudaOptions cuda;                   // of the cuda backend
  bool cpu_int8_activations = false;  // of the cpu backend (kernels/registry.h)
  bool cpu_exact_activations = false;
  int threads = 0;  // 0: all processors that this process may use
  ActivationFormat nvfp4_activation = ActivationFormat::kUnquantized;
  bool load_mtp = true;
  std::filesystem::path weight_cache;  // of packed weights for the next start; empty: none
  int64_t max_seq_len = 0;  // tokens, prompt and output; 0: the model's max_position_embeddings
  bool show_progress = false;
  ExpertOptions experts;
  Shard shard;                   // which part of the model, when several ranks share it
  Communicator* comm = nullptr;  // how they meet in host memory; it must outlive the model
  // An ExpertPlacement's file, for shard.ep_size groups; empty: experts in order of their numbers.
  std::filesystem::path expert_placement;
  // Told what share of the weights' elements is loaded, 0..1, rising; on loading threads, one call
  // at a time.
  std::function<void(double share)> on_progress;
};

// The backend that `backend` and `device` (auto, cpu or cuda) ask for together. Errors:
// kInvalidArgument when one names a GPU and the other does not.
Result<std::string> backend_on_device(std::string_view backend, std::string_view device);

// Not movable: the weights point into the kernels' device. On one of several ranks its destructor
// waits for those of the others; that of rank 0 ends serve_rank() there.
class LoadedModel {
 public:
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;
  ~LoadedModel();

  // Errors: those of the readers, make_kernels and Weights::load; kInvalidArgument for a
  // max_seq_len above the model's; kUnsupported for W4A4 on a checkpoint without NVFP4 weights;
  // those of make_tiered_store.
  static Result<std::unique_ptr<LoadedModel>> load(const std::filesystem::path& directory,
                                                   const ModelOptions& options);

  // What load() puts together, for a model of other origin: benchmarks of made-up weights.
  struct Parts {
    ModelConfig config;
    std::unique_ptr<Kernels> kernels;
    Weights weights;  // of `kernels`
    Tokenizer tokenizer;
    int64_t max_seq_len = 0;
    Communicator* comm = nullptr;
    std::unique_ptr<Communicator> device_comm;
  };
  static std::unique_ptr<LoadedModel> assemble(Parts parts);

  ModelConfig config;
  QuantConfig quant_config;
  std::unique_ptr<Kernels> kernels;
  Communicator* comm = nullptr;  // of several ranks, over host memory; weights.comm: the device's
  std::unique_ptr<Communicator> device_comm;  // may be null; weights.comm points to it
  // Kept where experts, or rows of the embedding, are read from the checkpoint while the model
  // runs.
  std::unique_ptr<CheckpointSource> source;
  std::unique_ptr<ExpertStore> expert_store;  // may be null; weights.expert_store points to it
  Weights weights;
  Tokenizer tokenizer;
  int64_t max_seq_len = 0;
  bool max_seq_len_was_asked = false;  // by ModelOptions, so that it may not be lowered unasked
  std::filesystem::path directory;

  // FP8 where the checkpoint asks for it, otherwise BF16.
  DType default_kv_cache_dtype() const;

  bool is_eos(int64_t token_id) const;

 private:
  LoadedModel(Tokenizer t, Weights w) : weights(std::move(w)), tokenizer(std::move(t)) {}
};

}  // namespace nibble
