// The cpu backend: all cores, vectors chosen at run time (panel_isa.h).
//
// Activations and accumulation are binary32, but NVFP4 weights meet activations as 16-bit integers
// with a step for each block of 16 (block_isa.h). Weights are packed at load into panels of 16 rows
// and stay quantized; they are decoded in registers (few tokens) or slice by slice into a buffer
// that fits the cache (many). Both ways add in the same order, so an output has the same bits in
// any batch and with any number of threads; between instruction sets bits may differ.
//
// With AMX, weights meet activations in BF16, in tiles (tile_isa.h), and so do attention's queries
// its keys (tile_attention.h): what the model was trained and is served with.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/thread_pool.h"
#include "nibble/kernels/cpu/attention_tiles.h"
#include "nibble/kernels/cpu/block_isa.h"
#include "nibble/kernels/cpu/panel_isa.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/cpu/scratch.h"
#include "nibble/kernels/cpu/tile_isa.h"
#include "nibble/kernels/cpu/weight_placement.h"
#include "nibble/kernels/kernels.h"
#include "nibble/kernels/weight_placer.h"

namespace nibble {

// What activations become where weights allow it. Levels below AMX have no BF16; kExact is as
// kStandard there, and kInt8 at the AMX level.
enum class CpuActivations {
  kStandard,  // BF16 in tiles; elsewhere integers of 16 bits against NVFP4, binary32 otherwise
  kInt8,      // integers of 8 bits against NVFP4: 0.5 % of noise
  kExact,     // two BF16 numbers in tiles, of NVFP4 and attention only
};

// The operations are called by one thread at a time; pack() by any number. Scratch memory is kept
// between calls; when it can't grow, an operation throws std::bad_alloc.
class CpuKernels final : public Kernels, public WeightPlacer {
 public:
  // What a mixture of experts may use for the rows of one pass: 512 MiB. More tokens are done in
  // several passes.
  static constexpr int64_t kMoeScratchFloats = int64_t{128} << 20;

  // Nodes that threads keep to, and who places memory on them.
  struct Numa {
    std::vector<NumaNode> nodes;
    NumaMemory* memory;
    int64_t most_mappings = system_most_mappings();
  };
  static Numa machine_numa();

  // isa must be one that this machine has, threads >= 1. `tiles`: kTileIsaPortable for a test; by
  // default the level's, which only AMX has. `numa`: for a test, too.
  CpuKernels(Isa isa, int threads, int64_t moe_scratch_floats = kMoeScratchFloats,
             CpuActivations activations = CpuActivations::kStandard, const TileIsa* tiles = nullptr,
             const Numa& numa = machine_numa());
  ~CpuKernels() override;

  std::string_view name() const override { return name_; }
  DType activation_dtype() const override { return DType::kF32; }
  Device& device() override { return *device_; }

  void expect_weights(int64_t matrices) override { placement_.expect(matrices); }
  void place_weight(void* destination, LinearFormat format, int64_t rows, int64_t cols) override {
    placement_.place(destination, format, rows, cols);
  }

  std::string_view packed_layout() const override { return "cpu panels of 16 rows, 2"; }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override;
  // Errors, also of pack_mla_up: kCorrupt for an FP8 weight that is NaN, and for an NVFP4 block
  // scale that is negative or NaN; both with their place.
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

 private:
  // Tokens that take one MLP, and where their rows are. Buffers are sliced, [slices, tokens, 128].
  struct MlpRun {
    const MlpWeight* weight;
    int64_t first_row;  // in the list of source rows
    int64_t tokens;
    float* gate_input;
    float* up_input;  // gate_input, unless up_proj quantizes its input differently
    float* product;
    float* out;  // row t at out + t * out_stride
    int64_t out_stride;
  };

  static constexpr int64_t kTaskParts = kTilePanels / kGroupPanels;

  // A part of a run: the outputs of a few groups of panels.
  struct RunTask {
    int32_t run;
    int32_t group;
    int32_t num_groups;
  };

  // How rows meet a weight: tiles take BF16 for all formats but F32, or two BF16 numbers for NVFP4
  // alone; elsewhere NVFP4 takes whole numbers, of 16 bits, or of 8 where activations are
  // quantized, and the other formats take floats.
  RowFormat row_format(const LinearWeight& weight) const;

  // Whether activations are BF16 numbers, those of attention too.
  bool bf16() const { return tiles_ != nullptr && activation_bits_ != CpuActivations::kExact; }
  // How rows meet MLA's kv_b_proj, which tiles of two planes and whole numbers leave alone.
  RowFormat mla_up_rows(const LinearWeight& weight) const {
    return bf16() ? row_format(weight) : RowFormat::kFloat;
  }

  // Groups of panels of a task, of each of `matrices` matrices: several where tiles use what they
  // read of the activations for all of them, as many as keep their results in L2 and leave every
  // thread two of the `groups`.
  int64_t groups_of_task(RowFormat rows, int64_t groups, int64_t tokens, int64_t matrices) const;

  // Tokens that are done at a time: a slice of them, 256 kB, stays in L2. Those that take two rows
  // in tiles are half as many.
  static constexpr int64_t kChunkTokens = 512;
  int64_t chunk_tokens(RowFormat rows) const {
    return rows == RowFormat::kBf16Split ? kChunkTokens / 2 : kChunkTokens;
  }

  // c[t, p] = sum over all columns, for up to kGroupPanels panels; scales not yet applied.
  //   a  [slices, tokens] rows in the matrix's row format;  weights  kGroupFloats of scratch
  void multiply_panels(const PanelMatrix& matrix, int64_t first_panel, int64_t panels,
                       const float* a, int64_t tokens, float* c, int64_t c_row, int64_t c_panel,
                       float* weights) const;

  // The same for kTaskParts groups at most that take the same rows, of equal cols, format and row
  // format; more than two only for tiles.
  //   weights  weight_floats(tokens, number of parts) of scratch
  void multiply_parts(std::span<const PanelPart> parts, const float* a, int64_t tokens,
                      int64_t c_row, int64_t c_panel, float* weights) const;

  // Scratch for the expanded weights of a product of at most `tokens` tokens and `groups` groups.
  int64_t weight_floats(int64_t tokens, int64_t groups) const;

  // linear(), which may round activations to BF16 or not.
  void perform_linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out,
                      bool tiles);

  // Writes rows row .. row + count - 1 of `rows` from x[i] [weight.cols] in that format: [slices,
  // rows], slice by slice, for a row's slices lie far apart. What lies past cols in the last slice
  // is not written, except by the formats of tiles.
  void copy_to_slices(const float* const* x, int64_t count, const LinearWeight& weight,
                      RowFormat format, int64_t row, int64_t rows, float* slices) const;
  // One slice of it, `count` <= 128 columns; x may be where the row will be only for floats.
  void copy_slice(const float* x, int64_t count, const LinearWeight& weight, RowFormat format,
                  int64_t row, int64_t rows, float* slice) const;

  // Performs runs_ on rows_ (one pointer for each row, in the order of the runs).
  void perform_runs();

  // How many BF16 numbers stand for a binary32 in the tiles of exact attention: two, and one for
  // entries of the cache that are BF16 numbers.
  static AttentionTiles::Planes attention_planes(bool exact_entries) {
    return {2, exact_entries ? 1 : 2};
  }

  void attend_expanded(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                       const AttentionBatch& batch, const KvCacheView& cache,
                       const MatrixView& out);
  // The same with queries, keys and values of BF16 in tiles.
  void attend_expanded_bf16(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                            const AttentionBatch& batch, const KvCacheView& cache,
                            const MatrixView& out);
  void attend_absorbed(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                       const AttentionBatch& batch, const KvCacheView& cache,
                       const MatrixView& out);
  // One pass of attend_absorbed over absorbed_, at most kAbsorbedTokens tokens.
  void attend_absorbed_tokens(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                              const KvCacheView& cache, int64_t tokens, const MatrixView& out);

  // Makes every thread's scratch at least `count` floats; then thread_scratch is valid for it.
  void reserve_thread_scratch(int64_t count);
  ScratchCursor thread_scratch(int thread_id) {
    return ScratchCursor(thread_bases_[static_cast<size_t>(thread_id)]);
  }

  const PanelIsa* isa_;
  const BlockIsa* blocks_;
  const TileIsa* tiles_;  // null where there are none
  CpuActivations activation_bits_;
  int64_t moe_scratch_floats_;
  std::string name_;
  std::unique_ptr<Device> device_;
  ThreadPool pool_;
  WeightPlacement placement_;

  Scratch activations_;
  Scratch products_;
  Scratch outputs_;
  std::vector<Scratch> thread_scratch_;
  std::vector<float*> thread_bases_;

  // Lists that keep their memory from call to call.
  std::vector<MlpRun> runs_;
  std::vector<RunTask> tasks_;
  std::vector<int64_t> bounds_;  // of the nodes' pieces, for parallel_for_nodes
  std::vector<const float*> rows_;
  std::vector<int32_t> row_run_;
  std::vector<int64_t> expert_count_;
  std::vector<int64_t> expert_rows_;
  std::vector<int64_t> slot_rows_;
  std::vector<AttentionSegment> segments_;
  std::vector<int64_t> segment_rows_;
  std::vector<int64_t> batch_rows_;
};

}  // namespace nibble
