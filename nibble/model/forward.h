// The forward pass of DeepSeek-V3, for every backend.
#pragma once

#include <functional>
#include <span>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/batch.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"

namespace nibble {

// Sees the residual stream: index 0 after the embedding, k after layer k - 1. For tests and probes.
using HiddenObserver = std::function<void(int index, const MatrixView& hidden)>;

// What linear layers read, by where it comes from.
enum class ActivationSite {
  kAttentionInput,  // [tokens, hidden_size]: q_a_proj, kv_a_proj_with_mqa
  kQueryLatent,     // [tokens, q_lora_rank]: q_b_proj
  kHeads,           // [tokens, num_heads * v_head_dim]: o_proj
  kMlpInput,  // [tokens, hidden_size]: gate_proj, up_proj; in a MoE layer those of all experts,
              // and workspace.expert_ids say which of them take which token
};

// Sees the inputs of a layer's linears before they run. For calibration.
using ActivationObserver = std::function<void(ActivationSite site, const MatrixView& x)>;

// One decoder layer, in place on workspace.x: what forward() does for each of its layers, for a
// caller that holds one layer at a time. Errors: those of forward().
[[nodiscard]] Status forward_layer(const ModelConfig& config, const Weights& weights, int layer,
                                   const Batch& batch, const KvCacheView& cache, Kernels& kernels,
                                   Workspace& workspace, const ActivationObserver& observer = {});

// Runs the batch through all layers, writing its cache entries. With a shard all ranks call it
// together, with the same batch, or with attention data parallel each with its own; whether the
// ranks understood each other stands in weights.comm->status() afterwards.
//
//   kv_cache   one view a layer, at least num_hidden_layers
//   hidden     [tokens, hidden_size]: rms_norm(x, model.norm), what lm_head and the MTP layer read;
//              may be workspace.normed
//   workspace  room for at least batch.num_tokens() rows
//
// Errors: those of weights.expert_store, where there is one; then `hidden` and the batch's cache
// entries mean nothing. What the device does is told by Device::synchronize().
[[nodiscard]] Status forward(const ModelConfig& config, const Weights& weights, const Batch& batch,
                             std::span<const KvCacheView> kv_cache, Kernels& kernels,
                             Workspace& workspace, const MatrixView& hidden,
                             const HiddenObserver& observer = {});

// Runs the MTP layer (weights.mtp is there). Row t pairs hidden state g_t with the token after it:
// batch.token_ids[t] is token t + 1, while the segment's positions stay those of t.
//
//   previous   [tokens, hidden_size]: g_t, the `hidden` of forward() or of an earlier call
//   mtp_cache  the MTP layer's own cache
//   hidden     [tokens, hidden_size]: rms_norm(z, shared_head.norm); lm_head of it gives the draft
//              logits for token t + 2. May be `previous`.
//
// Errors: those of forward().
[[nodiscard]] Status forward_mtp(const ModelConfig& config, const Weights& weights,
                                 const Batch& batch, const MatrixView& previous,
                                 const KvCacheView& mtp_cache, Kernels& kernels,
                                 Workspace& workspace, const MatrixView& hidden,
                                 const ActivationObserver& observer = {});

}  // namespace nibble
