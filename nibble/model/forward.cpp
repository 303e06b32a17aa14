// The model, from token ids to the hidden states that lm_head reads. Read it beside the DeepSeek-V3
// paper (arXiv 2412.19437, section 2); names are config.json's and the checkpoint's.
#include "nibble/model/forward.h"

#include <vector>

#include "nibble/base/check.h"
#include "nibble/model/expert_moe.h"
#include "nibble/model/expert_store.h"
#include "nibble/model/moe_alltoall.h"
#include "nibble/model/staged_expert_moe.h"

namespace nibble {
namespace {

// One pass's constants and buffers, narrowed to the batch.
struct Pass {
  const ModelConfig& config;
  const Weights& weights;
  const Batch& batch;
  Kernels& kernels;
  Workspace& workspace;
  float epsilon;
  const ActivationObserver& observer;

  void observe(ActivationSite site, const MatrixView& x_of_site) const {
    if (observer) observer(site, x_of_site);
  }
  MatrixView rows(const MatrixView& matrix) const {
    return matrix.slice_rows(0, batch.num_tokens());
  }

  // Where heads, MLPs and the vocabulary are cut each rank has computed a part of the sum x: adds
  // them up.
  void add_up(const MatrixView& x) const {
    if (weights.shard.attention().is_whole() || x.rows == 0) return;
    NIBBLE_CHECK(x.dtype == DType::kF32 && x.stride == x.cols);
    weights.comm->all_reduce_sum(x.row<float>(0), x.rows * x.cols);
  }

  // x += y, of which each rank has a part as above; out = x under an RMSNorm. y is lost.
  void add_up_and_norm(const MatrixView& y, const MatrixView& x, const float* weight,
                       const MatrixView& out) const {
    if (!weights.shard.attention().is_whole()) {
      NIBBLE_CHECK(y.dtype == DType::kF32 && y.stride == y.cols);
      SumNorm sum;
      sum.y = y.row<float>(0);
      sum.rows = y.rows;
      sum.cols = y.cols;
      sum.x = x.row<float>(0);
      sum.x_stride = x.stride;
      sum.weight = weight;
      sum.epsilon = epsilon;
      sum.out = out.row<float>(0);
      sum.out_stride = out.stride;
      if (weights.comm->all_reduce_sum_norm(sum)) return;
      add_up(y);
    }
    kernels.add_rms_norm(x, y, weight, epsilon, out);
  }

  // Whether the ranks understood each other.
  Status outcome() const { return weights.comm != nullptr ? weights.comm->status() : Status(); }
};

// x[t, :] = embed_tokens[token_ids[t], :]
void embed(const Pass& pass, const MatrixView& x) {
  const Weights& w = pass.weights;
  const Part part = w.shard.attention();
  if (part.is_whole()) return pass.kernels.embed(w.embed_tokens, pass.batch.token_ids, x);
  pass.kernels.embed_part(w.embed_tokens, part.index * w.embed_tokens.rows, pass.batch.token_ids,
                          x);
  pass.add_up(x);
}

// x [tokens, hidden_size] -> out, the same shape; this rank's part of the sum. Multi-head latent
// attention: the cache holds, for each token, the normed latent c (kv_lora_rank) and one rotated
// key r shared by all heads.
void attention(const Pass& pass, const AttentionWeights& w, const KvCacheView& cache,
               const MatrixView& x, const MatrixView& out) {
  Kernels& k = pass.kernels;
  const MatrixView q_a = pass.rows(pass.workspace.q_a);
  const MatrixView q = pass.rows(pass.workspace.q);
  const MatrixView kv_a = pass.rows(pass.workspace.kv_a);
  const MatrixView heads = pass.rows(pass.workspace.attention);
  const MlaShape& shape = pass.weights.mla_shape;
  const RopeTable& rope = pass.weights.rope;

  pass.observe(ActivationSite::kAttentionInput, x);
  // [tokens, q_lora_rank] and [tokens, kv_lora_rank + qk_rope_head_dim]
  k.linear_two(x, w.q_a_proj, q_a, w.kv_a_proj_with_mqa, kv_a);
  k.rms_norm(q_a, w.q_a_layernorm, pass.epsilon, q_a);
  pass.observe(ActivationSite::kQueryLatent, q_a);
  k.linear(q_a, w.q_b_proj, q);  // [tokens, num_heads * qk_head_dim]
  k.mla_prepare(q, kv_a, w.kv_a_layernorm, pass.epsilon, shape, rope, pass.batch.attention, cache);
  k.mla_attention(q, w.kv_b_proj, shape, pass.batch.attention, cache, heads);
  pass.observe(ActivationSite::kHeads, heads);
  k.linear(heads, w.o_proj, out);  // [tokens, hidden_size]
}

// x [tokens, hidden_size] -> out: num_experts_per_tok routed experts and the shared one; this
// rank's part of their sum.
Status moe(const Pass& pass, const MoeWeights& w, const MatrixView& x, const MatrixView& out) {
  const RouterShape shape = choose_experts(pass.weights, w, pass.kernels, x, 0, pass.workspace);
  pass.observe(ActivationSite::kMlpInput, x);
  std::span<const MlpWeight> experts = w.experts;
  if (pass.weights.expert_store != nullptr) {
    experts = pass.weights.expert_store->resident(w.layer);
    if (experts.empty() && pass.kernels.device().is_host()) {
      return moe_from_store(pass.weights, w, pass.kernels, x, pass.workspace, out);
    }
    if (experts.empty()) {
      return staged_moe_from_store(pass.weights, w, pass.config.moe_intermediate_size, pass.kernels,
                                   x, pass.workspace, out);
    }
  }
  pass.kernels.moe(x, experts, w.shared_experts ? &*w.shared_experts : nullptr, shape,
                   pass.workspace.expert_ids, pass.workspace.expert_weights, out);
  return {};
}

// The routed experts with attention data parallel: the tokens of all ranks are brought to all, each
// adds what its experts say, and the sums go back to where the tokens came from.
void moe_of_all_ranks(const Pass& pass, const MoeWeights& w, const MatrixView& x,
                      const MatrixView& out) {
  Communicator& comm = *pass.weights.comm;
  int64_t num_tokens = 0;
  std::vector<size_t> bytes;
  std::vector<int64_t> elements;
  for (const int64_t tokens : pass.batch.tokens_of_ranks) {
    num_tokens += tokens;
    elements.push_back(tokens * x.cols);
    bytes.push_back(static_cast<size_t>(elements.back()) * sizeof(float));
  }
  const MatrixView all = pass.workspace.all_tokens.slice_rows(0, num_tokens);
  const MatrixView outputs = pass.workspace.all_outputs.slice_rows(0, num_tokens);
  comm.all_gather(x.data, bytes, all.data);
  const RouterShape shape = choose_experts(pass.weights, w, pass.kernels, all, 0, pass.workspace);
  pass.kernels.moe(all, w.experts, nullptr, shape, pass.workspace.expert_ids,
                   pass.workspace.expert_weights, outputs);
  comm.reduce_scatter_sum(outputs.row<float>(0), elements, out.row<float>(0));
}

// x [tokens, hidden_size] -> out: the routed experts, on all ranks, and the shared one, which every
// rank has whole.
Status moe_data_parallel(const Pass& pass, const MoeWeights& w, const MatrixView& x,
                         const MatrixView& out) {
  const Weights& weights = pass.weights;
  const std::span<const int64_t> tokens_of_ranks = pass.batch.tokens_of_ranks;
  NIBBLE_CHECK(x.dtype == DType::kF32 && x.stride == x.cols && out.stride == out.cols);
  NIBBLE_CHECK(static_cast<int>(tokens_of_ranks.size()) == weights.comm->size());
  if (!pass.batch.is_recorded &&
      takes_alltoall(weights.shard, weights.router_shape, tokens_of_ranks, x.cols,
                     pass.kernels.device().is_host())) {
    NIBBLE_TRY(moe_alltoall(weights, w, tokens_of_ranks, pass.kernels, x, pass.workspace, out));
  } else {
    moe_of_all_ranks(pass, w, x, out);
  }
  if (w.shared_experts && x.rows > 0) {
    const MatrixView shared = pass.workspace.all_tokens.slice_rows(0, x.rows);  // free again
    pass.kernels.mlp(x, *w.shared_experts, shared);
    pass.kernels.add(out, shared);
  }
  return {};
}

// One decoder layer, in place on the residual stream x. On entry `normed` holds x under the layer's
// input_layernorm, on return x under `next_norm`, unless that is null.
Status decoder_layer(const Pass& pass, const LayerWeights& layer, const KvCacheView& cache,
                     const MatrixView& x, const float* next_norm, const MatrixView& next_normed) {
  Kernels& k = pass.kernels;
  const MatrixView normed = pass.rows(pass.workspace.normed);
  const MatrixView sublayer = pass.rows(pass.workspace.sublayer);

  // Without tokens of its own a rank only lends its experts to the others.
  if (x.rows == 0) {
    return layer.moe ? moe_data_parallel(pass, *layer.moe, normed, sublayer) : Status();
  }
  attention(pass, layer.self_attn, cache, normed, sublayer);
  pass.add_up_and_norm(sublayer, x, layer.post_attention_layernorm, normed);
  if (layer.moe && pass.weights.shard.enable_attention_dp) {
    NIBBLE_TRY(moe_data_parallel(pass, *layer.moe, normed, sublayer));
  } else if (layer.moe) {
    NIBBLE_TRY(moe(pass, *layer.moe, normed, sublayer));
  } else {
    pass.observe(ActivationSite::kMlpInput, normed);
    k.mlp(normed, *layer.mlp, sublayer);
  }
  if (next_norm == nullptr) {
    pass.add_up(sublayer);
    k.add(x, sublayer);
  } else {
    pass.add_up_and_norm(sublayer, x, next_norm, next_normed);
  }
  return {};
}

// x under the input_layernorm of a layer that no other comes before.
void norm_input(const Pass& pass, const LayerWeights& layer, const MatrixView& x) {
  if (x.rows == 0) return;
  pass.kernels.rms_norm(x, layer.input_layernorm, pass.epsilon, pass.rows(pass.workspace.normed));
}

Pass make_pass(const ModelConfig& config, const Weights& weights, const Batch& batch,
               Kernels& kernels, Workspace& workspace, const ActivationObserver& observer) {
  NIBBLE_CHECK(batch.num_tokens() >= (weights.shard.enable_attention_dp ? 0 : 1));
  NIBBLE_CHECK(batch.num_tokens() <= workspace.max_tokens());
  NIBBLE_CHECK(batch.attention.num_tokens == batch.num_tokens());
  return {config,  weights, batch, kernels, workspace, static_cast<float>(config.rms_norm_eps),
          observer};
}

}  // namespace

Status forward_layer(const ModelConfig& config, const Weights& weights, int layer,
                     const Batch& batch, const KvCacheView& cache, Kernels& kernels,
                     Workspace& workspace, const ActivationObserver& observer) {
  const Pass pass = make_pass(config, weights, batch, kernels, workspace, observer);
  const LayerWeights& layer_weights = weights.layers[static_cast<size_t>(layer)];
  const MatrixView x = pass.rows(workspace.x);
  norm_input(pass, layer_weights, x);
  return decoder_layer(pass, layer_weights, cache, x, nullptr, {});
}

Status forward(const ModelConfig& config, const Weights& weights, const Batch& batch,
               std::span<const KvCacheView> kv_cache, Kernels& kernels, Workspace& workspace,
               const MatrixView& hidden, const HiddenObserver& observer) {
  NIBBLE_CHECK(kv_cache.size() >= weights.layers.size());
  const ActivationObserver nobody;
  const Pass pass = make_pass(config, weights, batch, kernels, workspace, nobody);
  const MatrixView x = pass.rows(workspace.x);

  if (x.rows > 0) embed(pass, x);
  if (observer) observer(0, x);
  if (!weights.layers.empty()) norm_input(pass, weights.layers[0], x);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const bool last = i + 1 == weights.layers.size();
    NIBBLE_TRY(decoder_layer(pass, weights.layers[i], kv_cache[i], x,
                             last ? weights.norm : weights.layers[i + 1].input_layernorm,
                             last ? hidden : pass.rows(workspace.normed)));
    if (observer) observer(static_cast<int>(i) + 1, x);
  }
  return pass.outcome();
}

Status forward_mtp(const ModelConfig& config, const Weights& weights, const Batch& batch,
                   const MatrixView& previous, const KvCacheView& mtp_cache, Kernels& kernels,
                   Workspace& workspace, const MatrixView& hidden,
                   const ActivationObserver& observer) {
  NIBBLE_CHECK(weights.mtp.has_value());
  const MtpWeights& mtp = *weights.mtp;
  const Pass pass = make_pass(config, weights, batch, kernels, workspace, observer);
  const MatrixView x = pass.rows(workspace.x);
  const MatrixView input = pass.rows(workspace.mtp_input);
  const MatrixView embedding_half = input.slice_cols(0, config.hidden_size);
  const MatrixView hidden_half = input.slice_cols(config.hidden_size, config.hidden_size);

  // x = eh_proj [ rms_norm(embed(token t + 1), enorm) ; rms_norm(g_t, hnorm) ]
  if (x.rows > 0) {
    embed(pass, x);
    kernels.rms_norm(x, mtp.enorm, pass.epsilon, embedding_half);
    kernels.rms_norm(previous, mtp.hnorm, pass.epsilon, hidden_half);
    kernels.linear(input, mtp.eh_proj, x);
  }
  norm_input(pass, mtp.layer, x);
  NIBBLE_TRY(decoder_layer(pass, mtp.layer, mtp_cache, x, mtp.shared_head_norm, hidden));
  return pass.outcome();
}

}  // namespace nibble
