// The operations of a forward pass. Every backend implements all of them; kernels/reference is
// their definition, and tests hold the other backends to it.
//
// Activations are matrices [tokens, features] of activation_dtype(). Outputs are written whole and
// may not overlap inputs unless an operation says so. A row's result never depends on the other
// rows of the batch, on their number, or on the number of threads: the same bits. The cuda backend
// keeps that where it is asked to (CudaOptions::batch_invariant).
//
// Shapes and formats were checked when the weights were loaded: here they are NIBBLE_CHECKs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/kernels/attention_view.h"
#include "nibble/kernels/linear_weight.h"
#include "nibble/kernels/matrix_view.h"
#include "nibble/kernels/staged_moe.h"

namespace nibble {

class DeviceSampler;
class StepGraphs;

// Cosines and sines of the rotary angles: float [max_positions, qk_rope_head_dim / 2] each, in
// device memory. Made by model/rope.h.
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t max_positions = 0;
  int64_t half_dim = 0;
};

// The MLA weights that follow the projections q_a, q_b and kv_a, in the backend's own layout.
struct MlaUpWeight {
  LinearWeight kv_b_proj;     // [num_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]
  LinearWeight kv_b_k_trans;  // backends that absorb by a second matrix keep it here; else empty
};

// The extents of MLA, from config.json under the same names.
struct MlaShape {
  int64_t num_heads = 0;
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  float softmax_scale = 0;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t entry_size() const { return kv_lora_rank + qk_rope_head_dim; }
};

// noaux_tc routing, names as in config.json.
struct RouterShape {
  int n_routed_experts = 0;
  int num_experts_per_tok = 0;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;

  // Which of the routed experts are here, when ranks share them: num_local_experts from
  // first_local_expert on. -1: all.
  int first_local_expert = 0;
  int num_local_experts = -1;

  int local_experts() const { return num_local_experts < 0 ? n_routed_experts : num_local_experts; }
  // The index of an expert among those that are here, or -1.
  int local_expert(int expert_id) const {
    const int index = expert_id - first_local_expert;
    return index >= 0 && index < local_experts() ? index : -1;
  }
};

// One row to copy; both ends are float memory of the backend's device.
struct RowCopy {
  const float* from = nullptr;
  float* to = nullptr;
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  // "reference", "cpu avx512".
  virtual std::string_view name() const = 0;

  // The type of every activation matrix below.
  virtual DType activation_dtype() const = 0;

  // Where weights, caches and activations of this backend live.
  virtual Device& device() = 0;

  // Bytes that pack() needs for a matrix.
  virtual size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const = 0;

  // Names the layout that pack() writes: packed bytes may be kept in a file and read again by a
  // backend that says the same. Changes whenever the layout does.
  virtual std::string_view packed_layout() const = 0;

  // Lays `source` out in `destination` (packed_bytes of it, aligned as Device::allocate) and
  // returns the weight that points there. Exact: no value changes. Thread-safe.
  virtual Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                                    void* destination) const = 0;

  // The same for kv_b_proj, whose use depends on the backend.
  virtual size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const = 0;
  virtual Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                          void* destination) const = 0;

  // out[t, :] = table[token_ids[t], :]
  //
  //   table      BF16 or F32 [vocab_size, hidden_size], plain row-major layout in device memory
  //   token_ids  in 0 .. vocab_size - 1
  virtual void embed(const MatrixView& table, std::span<const int32_t> token_ids,
                     const MatrixView& out) = 0;

  // The same of a part of the vocabulary: row r of `table` is token first_id + r; tokens without a
  // row give zeros. For a backend in host memory built of embed().
  virtual void embed_part(const MatrixView& table, int64_t first_id,
                          std::span<const int32_t> token_ids, const MatrixView& out);

  // out[t, i] = x[t, i] * weight[i] / sqrt(mean_j(x[t, j]^2) + epsilon). May be done in place.
  //
  //   weight  float [cols]
  //
  // The mean is taken in binary64. Bound against the reference: 4 units of binary32.
  virtual void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                        const MatrixView& out) = 0;

  // out[t, n] = sum_k weight[n, k] * x[t, k]
  //
  // Weight-only formats multiply the dequantized weight (spec nvfp4 section 2; FP8: e4m3 * scale)
  // by x as it is. With ActivationFormat::kNvfp4 x is first quantized to NVFP4 blocks with the
  // static input_scale: out = (input_scale * global_scale) * sum_k (a_code a_scale)(w_code
  // w_scale); the reference adds exactly, in integers. Bound: normalised mean squared error 1e-10;
  // 1e-8 for NVFP4 weights with unquantized activations, which a backend may round to 16-bit
  // integers with a step of a power of two for each block of 16 (half a step is at most 2^-15 of
  // the block's largest: 7e-10 on normal data; rounding to BF16, as GPUs do, gives 3e-6).
  virtual void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) = 0;

  // linear(x, first, first_out) and linear(x, second, second_out), in one launch where launches
  // cost. Neither out is x.
  virtual void linear_two(const MatrixView& x, const LinearWeight& first,
                          const MatrixView& first_out, const LinearWeight& second,
                          const MatrixView& second_out) {
    linear(x, first, first_out);
    linear(x, second, second_out);
  }

  // x[t, i] += y[t, i]
  virtual void add(const MatrixView& x, const MatrixView& y) = 0;

  // add(x, y), then rms_norm(x, weight, epsilon, out): one launch where launches cost. out is
  // neither x nor y.
  virtual void add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight,
                            float epsilon, const MatrixView& out) {
    add(x, y);
    rms_norm(x, weight, epsilon, out);
  }

  // Rotates, in place, pairs (2i, 2i+1) of the last qk_rope_head_dim elements of every head:
  //   y[2i] = x[2i] cos a - x[2i+1] sin a;  y[2i+1] = x[2i] sin a + x[2i+1] cos a
  // with the angle a of the token's position and pair i.
  //
  //   q  [tokens, num_heads * qk_head_dim]
  virtual void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                            const AttentionBatch& batch) = 0;

  // Writes the batch's cache entries: rms_norm(latent) and the rotated rope key.
  //
  //   kv_a            [tokens, kv_lora_rank + qk_rope_head_dim], the output of kv_a_proj_with_mqa
  //   kv_a_layernorm  float [kv_lora_rank]
  virtual void mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                               const MlaShape& shape, const RopeTable& rope,
                               const AttentionBatch& batch, const KvCacheView& cache) = 0;

  // rotary_query and mla_cache_write, in one launch where launches cost.
  virtual void mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* kv_a_layernorm,
                           float epsilon, const MlaShape& shape, const RopeTable& rope,
                           const AttentionBatch& batch, const KvCacheView& cache) {
    rotary_query(q, shape, rope, batch);
    mla_cache_write(kv_a, kv_a_layernorm, epsilon, shape, rope, batch, cache);
  }

  // Causal attention over the cache, each segment in its form; both forms compute
  //   out[t, h] = sum_p softmax_p(softmax_scale * (q_nope . W_UK_h c_p + q_rope . r_p)) W_UV_h c_p
  //
  //   q    [tokens, num_heads * qk_head_dim], rotated
  //   out  [tokens, num_heads * v_head_dim]
  //
  // kv_b_proj's rows are, for each head, qk_nope_head_dim rows of W_UK then v_head_dim of W_UV.
  // Bound: normalised mean squared error 1e-9 at equal cache contents.
  virtual void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                             const AttentionBatch& batch, const KvCacheView& cache,
                             const MatrixView& out) = 0;

  // out = down(silu(gate x) * (up x)), silu(v) = v / (1 + exp(-v)). The product is an activation:
  // where down_proj asks for NVFP4 activations it is quantized in turn. Bound: nmse 1e-9, 1.5e-8
  // for NVFP4 weights.
  virtual void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) = 0;

  // noaux_tc routing, per token (spec kernels section 1.4):
  //   s = sigmoid(gate x); b = s + bias; group score = sum of its two largest b; the topk_group
  //   best groups are kept; of their experts the num_experts_per_tok largest b are chosen; ties go
  //   to the lower index; weight = s / (sum of chosen s + 1e-20) * routed_scaling_factor.
  //
  //   gate        [n_routed_experts, hidden_size], unquantized
  //   bias        float [n_routed_experts], e_score_correction_bias
  //   expert_ids  [tokens, num_experts_per_tok], in descending b; host-visible device memory
  //   weights     the same shape
  virtual void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
                     const RouterShape& shape, int32_t* expert_ids, float* weights) = 0;

  // out[t] = sum_j weights[t, j] * mlp(x[t], experts[expert_ids[t, j]]) + mlp(x[t], shared)
  // added in that order in binary32. Expert outputs are multiplied, not inputs. Experts of other
  // ranks add nothing. Bound: nmse 1e-9, 1.5e-8 for NVFP4 weights.
  //
  //   experts     shape.local_experts() of them
  //   expert_ids  among all of the model's
  //   shared      the shared experts as one MLP, or null
  virtual void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
                   const RouterShape& shape, const int32_t* expert_ids, const float* weights,
                   const MatrixView& out) = 0;

  // to[0, cols) = from[0, cols) for each row, all at once: no `to` is a `from`, and no two are
  // equal unless their rows are. For a backend in host memory a loop of copies.
  virtual void copy_rows(std::span<const RowCopy> rows, int64_t cols);

  // to = from, binary32 of the same shape that do not overlap. May be recorded (StepGraphs), unlike
  // copy_rows, whose rows are read when it is called.
  virtual void copy_matrix(const MatrixView& from, const MatrixView& to);

  // What a backend outside host memory brings beside the operations; null where the host samples,
  // and where nothing is recorded.
  virtual Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t vocab_size);
  virtual std::unique_ptr<StepGraphs> make_step_graphs();
  // One for each Kernels; null where experts are computed in host memory, one by one.
  virtual StagedMoe* staged_moe();
};

}  // namespace nibble
