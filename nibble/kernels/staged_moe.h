// Kernels::moe() in steps, for experts that come to the device while a pass runs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "nibble/base/result.h"
#include "nibble/kernels/linear_weight.h"
#include "nibble/kernels/matrix_view.h"

namespace nibble {

class HostMlp;
struct RouterShape;

// One MoE layer of a step. Pointers are to device memory.
struct StagedMoeLayer {
  MatrixView x;                         // [tokens, hidden_size]
  const MlpWeight* shared = nullptr;    // the shared experts as one MLP, or null
  int64_t moe_intermediate_size = 0;    // of a routed expert
  const RouterShape* shape = nullptr;   // of all experts: no other ranks
  const int32_t* expert_ids = nullptr;  // [tokens, num_experts_per_tok], written by Kernels::route
  const float* weights = nullptr;       // the same shape
};

// A router to run over the same x, for a guess at what it will choose from its own input.
struct StagedMoeGuess {
  const LinearWeight* gate = nullptr;
  const float* e_score_correction_bias = nullptr;
};

// What routers chose, in host memory until the next begin(): [tokens, num_experts_per_tok].
struct StagedMoeChoices {
  std::span<const int32_t> expert_ids;
  std::span<const float> weights;
  std::span<const int32_t> guessed_ids;  // empty without a guess
  std::span<const float> guessed_weights;
  MatrixView x;  // the layer's input in host memory, where begin() was asked for it
};

// For each layer: begin(), choices(), run() until every chosen expert has run once, end(). The
// output has the bits that Kernels::moe() gives with all experts in place. A layer that is given up
// before end() is forgotten by the next begin(). What fails on the device is returned by choices()
// or by Device::synchronize().
class StagedMoe {
 public:
  virtual ~StagedMoe() = default;

  // Sends the choices on their way to the host; meanwhile the shared experts run. What `layer`
  // points to must last until end().
  // with_x: their input goes to the host, too, for run_on_host().
  virtual void begin(const StagedMoeLayer& layer, const std::optional<StagedMoeGuess>& guess,
                     bool with_x = false) = 0;

  // Waits until the choices are there. Errors: kUnavailable with the device's words.
  virtual Result<StagedMoeChoices> choices() = 0;

  // Runs the experts `ready` over the tokens that chose them. `experts` has n_routed_experts, of
  // which those in `ready` have data until this work has run, and all have their shape.
  virtual void run(std::span<const MlpWeight> experts, std::span<const int32_t> ready) = 0;

  // Computes the experts `ids`, of host memory in the backend's layout, on the host, while what was
  // given to the device before runs there. Only where host_mlp() is and begin() brought x. Their
  // outputs are added like the others', and differ from the device's within HostMlp's bounds.
  virtual void run_on_host(std::span<const MlpWeight> /*experts*/,
                           std::span<const int32_t> /*ids*/) {}
  virtual HostMlp* host_mlp() { return nullptr; }

  // out[t] = sum_j weights[t, j] * outputs[t, j] + shared[t], added in that order.
  virtual void end(const MatrixView& out) = 0;
};

}  // namespace nibble
