// Dispatch by form, and the expanded form: parallel over heads and runs of query tokens. For each
// block of context, K and V of one head are made from the cached latents by kv_b_proj, used by all
// query tokens of the run and forgotten.
#include <algorithm>
#include <cstring>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

// Query tokens that share an expansion. More would save little of it (expanding a position costs as
// much as 400 queries looking at it) and need more scratch.
constexpr int64_t kQueryTokens = 1024;

static_assert(kGroupFloats == kContextBlock * kSliceCols);  // keys: one slice of a block

}  // namespace

void CpuKernels::mla_attention(const MatrixView& q, const MlaUpWeight& weight,
                               const MlaShape& shape, const AttentionBatch& batch,
                               const KvCacheView& cache, const MatrixView& out) {
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(out.cols == shape.num_heads * shape.v_head_dim);
  NIBBLE_CHECK(q.rows == batch.num_tokens && out.rows == batch.num_tokens);
  NIBBLE_CHECK(cache.entry_size == shape.entry_size());
  attend_expanded(q, weight, shape, batch, cache, out);
  attend_absorbed(q, weight, shape, batch, cache, out);
}

void CpuKernels::attend_expanded(const MatrixView& q, const MlaUpWeight& weight,
                                 const MlaShape& shape, const AttentionBatch& batch,
                                 const KvCacheView& cache, const MatrixView& out) {
  segments_.clear();
  int64_t most_tokens = 0;
  for (const AttentionSegment& segment : batch.segments) {
    if (segment.form != MlaForm::kExpanded) continue;
    for (int64_t first = 0; first < segment.num_tokens; first += kQueryTokens) {
      AttentionSegment part = segment;
      part.first_token += first;
      part.first_position += first;
      part.num_tokens = std::min(kQueryTokens, segment.num_tokens - first);
      most_tokens = std::max(most_tokens, part.num_tokens);
      segments_.push_back(part);
    }
  }
  if (segments_.empty()) return;

  const MlaPanels panels(shape);
  const PanelMatrix matrix = panel_matrix(weight.kv_b_proj, RowFormat::kFloat);
  const float alpha = output_scale(weight.kv_b_proj, RowFormat::kFloat);
  const int64_t latent_floats = slices_of(shape.kv_lora_rank) * kSliceCols * kContextBlock;
  const int64_t key_floats = slices_of(shape.qk_head_dim()) * kGroupFloats;
  reserve_thread_scratch(latent_floats + panels.head() * kPanelFloats + key_floats + kGroupFloats +
                         ScratchCursor::padded(kContextBlock * shape.qk_rope_head_dim) +
                         AttentionRows::scratch_floats(most_tokens, panels.value) +
                         attend_block_floats(shape.qk_head_dim()));

  const auto attend = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t task = begin; task < end; ++task) {
      const AttentionSegment& segment = segments_[static_cast<size_t>(task / shape.num_heads)];
      const int64_t head = task % shape.num_heads;
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const latents = scratch.take(latent_floats);
      float* const expanded = scratch.take(panels.head() * kPanelFloats);
      float* const keys = scratch.take(key_floats);
      float* const weights = scratch.take(kGroupFloats);
      float* const rope = scratch.take(kContextBlock * shape.qk_rope_head_dim);
      float* const block_scratch = scratch.take(attend_block_floats(shape.qk_head_dim()));
      AttentionRows rows;
      rows.rows = segment.num_tokens;
      rows.q = q.row<float>(segment.first_token) + head * shape.qk_head_dim();
      rows.token_stride = q.stride;
      rows.dim = shape.qk_head_dim();
      rows.first_visible = segment.first_position + 1;
      rows.value_panels = panels.value;
      rows.softmax_scale = shape.softmax_scale;
      rows.start(scratch);

      const int64_t context = segment.first_position + segment.num_tokens;
      for (int64_t start = 0; start < context; start += kContextBlock) {
        const int64_t valid = std::min(kContextBlock, context - start);
        for (int64_t p = 0; p < valid; ++p) {
          for (int64_t c = 0; c < shape.kv_lora_rank; c += kSliceCols) {
            read_cache(*isa_, cache, segment.block_table, segment.slot(start + p), c,
                       std::min<int64_t>(kSliceCols, shape.kv_lora_rank - c),
                       latents + c * valid + p * kSliceCols);
          }
          read_cache(*isa_, cache, segment.block_table, segment.slot(start + p), shape.kv_lora_rank,
                     shape.qk_rope_head_dim, rope + p * shape.qk_rope_head_dim);
        }
        // expanded [panels of K, then of V][128 positions, 16]
        for (int64_t p = 0; p < panels.head(); p += kGroupPanels) {
          multiply_panels(matrix, head * panels.head() + p,
                          std::min<int64_t>(kGroupPanels, panels.head() - p), latents, valid,
                          expanded + p * kPanelFloats, kPanelRows, kPanelFloats, weights);
        }
        if (alpha != 1) {
          for (int64_t p = 0; p < panels.head(); ++p) {
            isa_->scale(expanded + p * kPanelFloats, valid * kPanelRows, alpha);
          }
        }
        for (int64_t first = 0; first < valid; first += kPanelRows) {
          for (int64_t d = 0; d < shape.qk_nope_head_dim; d += kPanelRows) {
            fill_keys(*isa_, expanded + d / kPanelRows * kPanelFloats, kPanelRows, first, valid, d,
                      std::min<int64_t>(kPanelRows, shape.qk_nope_head_dim - d), keys);
          }
          fill_keys(*isa_, rope, shape.qk_rope_head_dim, first, valid, shape.qk_nope_head_dim,
                    shape.qk_rope_head_dim, keys);
        }
        attend_block(*isa_, rows, start, keys, expanded + panels.nope * kPanelFloats,
                     block_scratch);
      }
      for (int64_t t = 0; t < segment.num_tokens; ++t) {
        float* const row = out.row<float>(segment.first_token + t) + head * shape.v_head_dim;
        const float* const sums = rows.sums + t * panels.value * kPanelRows;
        for (int64_t i = 0; i < shape.v_head_dim; ++i) row[i] = sums[i] / rows.total[t];
      }
    }
  };
  pool_.parallel_for(static_cast<int64_t>(segments_.size()) * shape.num_heads, 1, attend);
}

}  // namespace nibble
