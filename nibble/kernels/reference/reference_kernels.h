// The definition of every operation: plain loops, one thread, sums in binary64.
#pragma once

#include <memory>

#include "nibble/kernels/kernels.h"

namespace nibble {

// Activations are F32. Weights stay in the checkpoint's layout: pack() copies.
class ReferenceKernels final : public Kernels {
 public:
  ReferenceKernels();
  ~ReferenceKernels() override;

  std::string_view name() const override { return "reference"; }
  DType activation_dtype() const override { return DType::kF32; }
  Device& device() override { return *device_; }

  std::string_view packed_layout() const override { return "reference, 1"; }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override;
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override;
  size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const override;
  Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                  void* destination) const override;

  void embed(const MatrixView& table, std::span<const int32_t> token_ids,
             const MatrixView& out) override;
  void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                const MatrixView& out) override;
  void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) override;
  void add(const MatrixView& x, const MatrixView& y) override;
  void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                    const AttentionBatch& batch) override;
  void mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                       const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                       const KvCacheView& cache) override;
  void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                     const AttentionBatch& batch, const KvCacheView& cache,
                     const MatrixView& out) override;
  void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) override;
  void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
             const RouterShape& shape, int32_t* expert_ids, float* weights) override;
  void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
           const RouterShape& shape, const int32_t* expert_ids, const float* weights,
           const MatrixView& out) override;

  // out[r, c] for all of `weight` in the checkpoint's layout: the dequantized values.
  //
  //   kNvfp4     f32(e2m1 * f32(e4m3(block scale) * global_scale))   spec nvfp4 section 2
  //   kFp8Block  f32(e4m3 * weight_scale_inv)                        section 6
  static void dequantize(const LinearWeight& weight, float* out);

 private:
  std::unique_ptr<Device> device_;
};

}  // namespace nibble
