// The class behind make_cuda_kernels(), for the files that implement its operations.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/device.h"
#include "nibble/kernels/cuda/cublas_lt.h"
#include "nibble/kernels/cuda/cuda_kernels.h"
#include "nibble/kernels/cuda/device_memory.h"
#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/linear_w4a4.h"
#include "nibble/kernels/cuda/mla_attend.h"
#include "nibble/kernels/cuda/pack.h"

namespace nibble::cuda {

// From here on cuBLASLt is faster, and batch_invariant (CudaOptions) makes a difference.
inline constexpr int64_t kManyTokens = 128;
// The same of wgmma for experts: 8 rows each, for R1.
inline constexpr int64_t kManyExpertTokens = 256;

class CudaKernels final : public Kernels {
 public:
  CudaKernels(std::unique_ptr<Device> device, const CudaOptions& options);
  ~CudaKernels() override;

  std::string_view name() const override { return name_; }
  DType activation_dtype() const override { return DType::kF32; }
  Device& device() override { return *device_; }

  std::string_view packed_layout() const override { return "cuda mma tiles of 16 rows, 2"; }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override;
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override;
  size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const override;
  Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                  void* destination) const override;

  void embed(const MatrixView& table, std::span<const int32_t> token_ids,
             const MatrixView& out) override;
  void embed_part(const MatrixView& table, int64_t first_id, std::span<const int32_t> token_ids,
                  const MatrixView& out) override;
  void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                const MatrixView& out) override;
  void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) override;
  void linear_two(const MatrixView& x, const LinearWeight& first, const MatrixView& first_out,
                  const LinearWeight& second, const MatrixView& second_out) override;
  void add(const MatrixView& x, const MatrixView& y) override;
  void add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight, float epsilon,
                    const MatrixView& out) override;
  void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                    const AttentionBatch& batch) override;
  void mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                       const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                       const KvCacheView& cache) override;
  void mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* kv_a_layernorm,
                   float epsilon, const MlaShape& shape, const RopeTable& rope,
                   const AttentionBatch& batch, const KvCacheView& cache) override;
  void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                     const AttentionBatch& batch, const KvCacheView& cache,
                     const MatrixView& out) override;
  void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) override;
  void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
             const RouterShape& shape, int32_t* expert_ids, float* weights) override;
  void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
           const RouterShape& shape, const int32_t* expert_ids, const float* weights,
           const MatrixView& out) override;
  void copy_rows(std::span<const RowCopy> rows, int64_t cols) override;
  void copy_matrix(const MatrixView& from, const MatrixView& to) override;
  Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t vocab_size) override;
  std::unique_ptr<StepGraphs> make_step_graphs() override;
  StagedMoe* staged_moe() override;

  // For experts that come while a pass runs (cuda_staged_moe.h): every slot of `x` whose expert is
  // in `ready`, and the shared expert where there is one, go to their rows of expert_rows
  // [tokens * (k + 1), hidden_size]: all slots, then the shared expert's. `upload` keeps their
  // table. False: the error is kept.
  bool moe_part(const MatrixView& x, std::span<const MlpWeight> experts,
                std::span<const int32_t> ready, const MlpWeight* shared, const RouterShape& shape,
                const int32_t* expert_ids, float* expert_rows, Upload& upload);
  // Adds up what moe_part() wrote.
  void moe_combine(const RouterShape& shape, const int32_t* expert_ids, const float* weights,
                   bool with_shared, float* expert_rows, const MatrixView& out);

  // For recorded work (cuda_step_graphs.h): sends all that operations on this batch read, so that
  // they find it in place. False: the error is kept.
  bool stage(std::span<const int32_t> token_ids, const AttentionBatch& batch,
             const KvCacheView& cache);
  // Launches are laid out for contexts of at least so many tokens; 0: for the batch's own.
  void set_context_bound(int64_t tokens) { context_bound_ = tokens; }
  cudaStream_t stream() const { return stream_; }
  // For work that is recorded or replayed: what it writes and leaves is its own.
  void make_copies_void() { copies_.make_void(); }
  // Keeps a failed launch for Device::synchronize().
  void keep(cudaError_t code, std::string_view operation);

 private:
  // A MoE layer's experts as the device sees them.
  struct ExpertTable {
    const StreamGroup* gate_up = nullptr;  // [experts + shared]
    const StreamGroup* down = nullptr;
    const StreamGroup* up = nullptr;  // W4A4's alone
    const W4a4Weight* w4a4[3] = {};   // gate, up, down
    const uint8_t* classes = nullptr;
    std::vector<std::pair<int, MlpWeight>> present;  // the classes there are, and an MLP of each
    bool shared_joins = false;
    bool is_whole = true;  // every expert has a class

    void point_to(const std::byte* bytes, size_t count);  // count: experts + shared
  };
  // One that stays, of a layer whose experts do; `host` is what it was made from.
  struct KeptTable {
    ExpertTable table;
    std::vector<MlpWeight> host;
    Buffer buffer;
  };

  // x as BF16 parts, rows contiguous.
  struct Bf16Rows {
    uint16_t* data = nullptr;
    int64_t row_stride = 0;
    int64_t part_stride = 0;
  };
  Bf16Rows convert(const MatrixView& x, int parts, Scratch& scratch);
  // Tells args where x lies: in the copy that its writer left, as it is where
  // stream_takes_floats(), or converted now. False: the error is kept.
  bool give_rows(const MatrixView& x, int parts, StreamArgs& args);
  // Every operation says so of every matrix of a pass that it writes, first: with a copy, or
  // without.
  Bf16Copy writes_copied(const MatrixView& out, int parts = 1);
  void writes(const MatrixView& out);

  // `second` is null, or has the format and columns of `weight`.
  void linear_parts(const MatrixView& x, const LinearWeight& weight, const MatrixView& out,
                    int parts, const LinearWeight* second = nullptr,
                    const MatrixView& second_out = {});
  // Whether expanding the weight for cuBLASLt pays and is allowed.
  bool takes_many(const LinearWeight& weight, int64_t tokens) const;
  void linear_many(const Bf16Rows& x, int64_t tokens, const LinearWeight& weight,
                   const MatrixView& out);
  // gate = silu(gate) * up, all [x.rows, intermediate] and contiguous, then down.
  void swiglu_down(float* gate, const float* up, int64_t rows, const LinearWeight& down,
                   const MatrixView& out);
  // The product of rows that are BF16 already.
  void linear_rows(const Bf16Rows& rows, int64_t tokens, const LinearWeight& weight,
                   const MatrixView& out);
  void linear_w4a4(const MatrixView& x, const LinearWeight& weight, const MatrixView& out);
  // The same on tensor cores (w4a4_tensor.cpp): of NVFP4 where cuBLASLt has them, of BF16
  // otherwise.
  bool w4a4_on_tensor_cores() const;
  void linear_w4a4_tensor(const MatrixView& x, const LinearWeight& weight, const MatrixView& out);
  void moe_w4a4_tensor(const MatrixView& x, const ExpertTable& table, int cls,
                       const MlpWeight& like, const RouterShape& shape, const int32_t* expert_ids,
                       float* expert_rows, bool fixed_order);
  bool linear_fp4(const MatrixView& x, const LinearWeight& weight, const MatrixView& out);
  const Fp4Matrix* fp4_weight(const LinearWeight& weight);
  // x rounded to NVFP4, without input_scale.
  Bf16Rows round_nvfp4(const float* x, int64_t rows, int64_t cols, int64_t stride,
                       float input_scale, Scratch& scratch);
  W4a4Activations quantize(const float* x, int64_t rows, int64_t cols, int64_t stride,
                           float input_scale);
  const ExpertTable* expert_table(std::span<const MlpWeight> experts, const MlpWeight* shared);
  // The bytes of a table with the experts `ready`. False: the error is kept.
  bool describe_experts(std::span<const MlpWeight> experts, std::span<const int32_t> ready,
                        const MlpWeight* shared, ExpertTable& table, std::vector<std::byte>& bytes);
  // fixed_order: a token's bits may not depend on which other experts run.
  void moe_rows(const MatrixView& x, const ExpertTable& table, const MlpWeight* shared,
                const RouterShape& shape, const int32_t* expert_ids, float* expert_rows,
                bool fixed_order);
  // Which rows of which experts of class `cls` run, in pieces for launch_linear_stream().
  struct StreamedPlan {
    StreamArgs args;  // work, slots and what says which row of x a slot has
    int work_tokens = 8;
    int64_t all_slots = 0;
  };
  // False: the error is kept.
  bool plan_streamed(int64_t tokens, const ExpertTable& table, int cls, const RouterShape& shape,
                     const int32_t* expert_ids, StreamedPlan& plan);
  void moe_streamed(const MatrixView& x, const ExpertTable& table, int cls, const MlpWeight& like,
                    const RouterShape& shape, const int32_t* expert_ids, float* expert_rows,
                    bool fixed_order);
  // Whether wgmma serves the experts (gemm_nvfp4.h): for many tokens, and where it is allowed.
  bool takes_many_experts(const MlpWeight& like, int64_t tokens) const;
  void moe_multiplied(const MatrixView& x, const ExpertTable& table, int cls, const MlpWeight& like,
                      const RouterShape& shape, const int32_t* expert_ids, float* expert_rows);
  void moe_w4a4(const MatrixView& x, const ExpertTable& table, const MlpWeight& like,
                const RouterShape& shape, const int32_t* expert_ids, float* expert_rows);
  void attend_latents(const AttendArgs& attend, const AttentionBatch& batch);
  // The rows of `batch`, whose views attend.views points to.
  void attend_absorbed(const MatrixView& q, const MlaUpWeight& weight, AttendArgs attend,
                       const AttentionBatch& batch, const MatrixView& out,
                       const Bf16Copy& out_copy);
  // Whether absorption and values go to head_products.h.
  bool takes_head_products(const MlaUpWeight& weight, const MlaShape& shape,
                           const MatrixView& q) const;
  // Whether long prompts go to mla_prompt.h.
  bool expands_prompts(const MlaUpWeight& weight, const MlaShape& shape,
                       const KvCacheView& cache) const;
  // q and out are the segment's rows; attend.views are the batch's.
  void attend_expanded(const MatrixView& q, const MlaUpWeight& weight, const AttendArgs& attend,
                       const AttentionSegment& segment, const MatrixView& out);
  // What the device needs to know of a batch; each is sent when it differs from the last one.
  const int32_t* upload_positions(const AttentionBatch& batch);
  const int64_t* upload_entries(const AttentionBatch& batch, const KvCacheView& cache);
  bool upload_views(const AttentionBatch& batch, const KvCacheView& cache, AttendArgs& attend);

  std::unique_ptr<Device> device_;
  Bf16Copies& copies_;
  cudaStream_t stream_;
  std::string name_;
  int parts_;  // CudaOptions::activation_parts
  bool batch_invariant_;
  bool fixed_expert_order_;
  bool gemm_runs_;
  std::unique_ptr<CublasLt> cublas_lt_;  // null where it is missing

  std::unique_ptr<PackPool> pack_pool_;

  Scratch x_scratch_;
  Scratch act_scratch_;
  Scratch plan_scratch_;
  Scratch local_scratch_;
  Scratch expert_scratch_;
  Scratch logits_scratch_;
  Scratch gate_scratch_;
  Scratch code_scratch_;
  Scratch absorbed_scratch_;
  Scratch latent_scratch_;
  Scratch merge_scratch_;
  Scratch expand_scratch_;
  Buffer arrivals_;  // RouteFewArgs::arrivals
  // Weights as cuBLASLt takes NVFP4, beside the packed ones, by these' address.
  struct KeptFp4 {
    Buffer buffer;
    Fp4Matrix matrix;
  };
  mutable std::mutex fp4_mutex_;  // pack() may run on any thread
  mutable std::unordered_map<const void*, KeptFp4> fp4_weights_;
  mutable std::unordered_set<const void*> fp4_refused_;  // cuBLASLt has no product for them
  bool told_of_refusal_ = false;
  Upload token_ids_;
  Upload positions_;
  Upload entries_;
  Upload views_;
  Upload tables_;
  Upload row_copies_;
  int64_t context_bound_ = 0;
  std::unordered_map<const MlpWeight*, KeptTable> expert_tables_;
  std::vector<std::byte> table_bytes_;
  std::unique_ptr<StagedMoe> staged_moe_;
};

}  // namespace nibble::cuda
