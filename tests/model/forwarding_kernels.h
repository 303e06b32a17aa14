// A backend whose operations are another's, for tests that replace one of the things it makes.
#pragma once

#include <memory>
#include <utility>

#include "nibble/kernels/device_sampler.h"
#include "nibble/kernels/kernels.h"
#include "nibble/kernels/registry.h"
#include "nibble/kernels/step_graphs.h"

namespace nibble::testing {

class ForwardingKernels : public Kernels {
 public:
  explicit ForwardingKernels(std::unique_ptr<Kernels> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  Device& device() override { return inner_->device(); }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override {
    return inner_->packed_bytes(format, rows, cols);
  }
  std::string_view packed_layout() const override { return inner_->packed_layout(); }
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override {
    return inner_->pack(source, activation, destination);
  }
  size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const override {
    return inner_->packed_mla_up_bytes(format, shape);
  }
  Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                  void* destination) const override {
    return inner_->pack_mla_up(kv_b_proj, shape, destination);
  }
  void embed(const MatrixView& table, std::span<const int32_t> ids,
             const MatrixView& out) override {
    inner_->embed(table, ids, out);
  }
  void embed_part(const MatrixView& table, int64_t first_id, std::span<const int32_t> ids,
                  const MatrixView& out) override {
    inner_->embed_part(table, first_id, ids, out);
  }
  void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                const MatrixView& out) override {
    inner_->rms_norm(x, weight, epsilon, out);
  }
  void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) override {
    inner_->linear(x, weight, out);
  }
  void linear_two(const MatrixView& x, const LinearWeight& first, const MatrixView& first_out,
                  const LinearWeight& second, const MatrixView& second_out) override {
    inner_->linear_two(x, first, first_out, second, second_out);
  }
  void add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight, float epsilon,
                    const MatrixView& out) override {
    inner_->add_rms_norm(x, y, weight, epsilon, out);
  }
  void add(const MatrixView& x, const MatrixView& y) override { inner_->add(x, y); }
  void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                    const AttentionBatch& batch) override {
    inner_->rotary_query(q, shape, rope, batch);
  }
  void mla_cache_write(const MatrixView& kv_a, const float* weight, float epsilon,
                       const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                       const KvCacheView& cache) override {
    inner_->mla_cache_write(kv_a, weight, epsilon, shape, rope, batch, cache);
  }
  void mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* weight, float epsilon,
                   const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                   const KvCacheView& cache) override {
    inner_->mla_prepare(q, kv_a, weight, epsilon, shape, rope, batch, cache);
  }
  void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                     const AttentionBatch& batch, const KvCacheView& cache,
                     const MatrixView& out) override {
    inner_->mla_attention(q, weight, shape, batch, cache, out);
  }
  void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) override {
    inner_->mlp(x, weight, out);
  }
  void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
             const RouterShape& shape, int32_t* expert_ids, float* weights) override {
    inner_->route(x, gate, bias, shape, expert_ids, weights);
  }
  void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
           const RouterShape& shape, const int32_t* expert_ids, const float* weights,
           const MatrixView& out) override {
    inner_->moe(x, experts, shared, shape, expert_ids, weights, out);
  }
  void copy_rows(std::span<const RowCopy> rows, int64_t cols) override {
    inner_->copy_rows(rows, cols);
  }
  void copy_matrix(const MatrixView& from, const MatrixView& to) override {
    inner_->copy_matrix(from, to);
  }
  Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t vocab_size) override {
    return inner_->make_sampler(vocab_size);
  }
  std::unique_ptr<StepGraphs> make_step_graphs() override { return inner_->make_step_graphs(); }
  StagedMoe* staged_moe() override { return inner_->staged_moe(); }

 protected:
  std::unique_ptr<Kernels> inner_;
};

}  // namespace nibble::testing
