// Dispatch by form, and the expanded form: parallel over heads and runs of query tokens. For each
// block of context, K and V of one head are made from the cached latents by kv_b_proj, used by all
// query tokens of the run and forgotten.
#include <algorithm>
#include <cstring>
#include <optional>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/attention_tiles.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

// Query tokens that share an expansion. More would save little of it (expanding a position costs as
// much as 400 queries looking at it) and need more scratch, which with tiles is to stay in L2.
constexpr int64_t kQueryTokens = 1024;
constexpr int64_t kTileQueryTokens = 512;

static_assert(kGroupFloats == kContextBlock * kSliceCols);  // keys: one slice of a block

}  // namespace

void CpuKernels::mla_attention(const MatrixView& q, const MlaUpWeight& weight,
                               const MlaShape& shape, const AttentionBatch& batch,
                               const KvCacheView& cache, const MatrixView& out) {
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(out.cols == shape.num_heads * shape.v_head_dim);
  NIBBLE_CHECK(q.rows == batch.num_tokens && out.rows == batch.num_tokens);
  NIBBLE_CHECK(cache.entry_size == shape.entry_size());
  if (bf16()) {
    attend_expanded_bf16(q, weight, shape, batch, cache, out);
  } else {
    attend_expanded(q, weight, shape, batch, cache, out);
  }
  attend_absorbed(q, weight, shape, batch, cache, out);
}

void CpuKernels::attend_expanded(const MatrixView& q, const MlaUpWeight& weight,
                                 const MlaShape& shape, const AttentionBatch& batch,
                                 const KvCacheView& cache, const MatrixView& out) {
  segments_.clear();
  int64_t most_tokens = 0;
  const int64_t run = tiles_ != nullptr ? kTileQueryTokens : kQueryTokens;
  for (const AttentionSegment& segment : batch.segments) {
    if (segment.form != MlaForm::kExpanded) continue;
    for_parts(segment, run, [&](const AttentionSegment& part) {
      most_tokens = std::max(most_tokens, part.num_tokens);
      segments_.push_back(part);
    });
  }
  if (segments_.empty()) return;

  const MlaPanels panels(shape);
  // Latents of the cache that are BF16 numbers meet weights in tiles as they are.
  const LinearFormat format = weight.kv_b_proj.format;
  const bool expand_tiles = tiles_ != nullptr && cache.dtype != DType::kF32 &&
                            (format == LinearFormat::kBf16 || format == LinearFormat::kNvfp4);
  const PanelMatrix matrix =
      panel_matrix(weight.kv_b_proj, expand_tiles ? RowFormat::kBf16 : RowFormat::kFloat);
  const float alpha = output_scale(weight.kv_b_proj, matrix.rows);
  const AttentionTiles::Planes planes = attention_planes(/*exact_entries=*/false);
  const int64_t latent_floats = slices_of(shape.kv_lora_rank) * kSliceCols * kContextBlock;
  const int64_t key_floats = slices_of(shape.qk_head_dim()) * kGroupFloats;
  const int64_t weight_scratch = weight_floats(kContextBlock, 1);
  const int64_t block_floats =
      tiles_ != nullptr
          ? AttentionTiles::scratch_floats(most_tokens, shape.qk_head_dim(), panels.value, planes)
          : attend_block_floats(shape.qk_head_dim());
  reserve_thread_scratch(latent_floats + panels.head() * kPanelFloats + key_floats +
                         ScratchCursor::padded(weight_scratch) +
                         ScratchCursor::padded(kContextBlock * shape.qk_rope_head_dim) +
                         ScratchCursor::padded(kSliceCols) +
                         AttentionRows::scratch_floats(most_tokens, panels.value) + block_floats);

  const auto attend = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t task = begin; task < end; ++task) {
      const AttentionSegment& segment = segments_[static_cast<size_t>(task / shape.num_heads)];
      const int64_t head = task % shape.num_heads;
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const latents = scratch.take(latent_floats);
      float* const expanded = scratch.take(panels.head() * kPanelFloats);
      float* const keys = scratch.take(key_floats);
      float* const weights = scratch.take(weight_scratch);
      float* const rope = scratch.take(kContextBlock * shape.qk_rope_head_dim);
      float* const piece = scratch.take(kSliceCols);
      AttentionRows rows;
      rows.rows = segment.num_tokens;
      rows.q = q.row<float>(segment.first_token) + head * shape.qk_head_dim();
      rows.token_stride = q.stride;
      rows.dim = shape.qk_head_dim();
      rows.first_visible = segment.first_position + 1;
      rows.value_panels = panels.value;
      rows.softmax_scale = shape.softmax_scale;
      if (tiles_ != nullptr) rows.softmax_scale *= AttentionTiles::kFactor;
      rows.start(scratch);
      std::optional<AttentionTiles> tiles;
      float* block_scratch = nullptr;
      if (tiles_ != nullptr) {
        tiles.emplace(*tiles_, planes, rows, scratch);
      } else {
        block_scratch = scratch.take(block_floats);
      }

      const int64_t context = segment.first_position + segment.num_tokens;
      for (int64_t start = 0; start < context; start += kContextBlock) {
        const int64_t valid = std::min(kContextBlock, context - start);
        for (int64_t p = 0; p < valid; ++p) {
          for (int64_t c = 0; c < shape.kv_lora_rank; c += kSliceCols) {
            const int64_t count = std::min<int64_t>(kSliceCols, shape.kv_lora_rank - c);
            float* const slice = latents + c / kSliceCols * valid * row_slice_floats(matrix.rows);
            float* const entry = expand_tiles ? piece : slice + p * kSliceCols;
            read_cache(*isa_, cache, segment.block_table, segment.slot(start + p), c, count, entry);
            if (expand_tiles) tiles_->quantize(entry, count, 1, p, valid, slice);
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
        const float* const values = expanded + panels.nope * kPanelFloats;
        if (tiles) {
          tiles->set_entries(valid, keys, values);
          tiles->attend(*isa_, start);
        } else {
          attend_block(*isa_, rows, start, keys, values, block_scratch);
        }
      }
      const float factor = tiles ? AttentionTiles::kFactor : 1;
      for (int64_t t = 0; t < segment.num_tokens; ++t) {
        float* const row = out.row<float>(segment.first_token + t) + head * shape.v_head_dim;
        const float* const sums = rows.sums + t * panels.value * kPanelRows;
        for (int64_t i = 0; i < shape.v_head_dim; ++i) {
          row[i] = factor * sums[i] / rows.total[t];
        }
      }
    }
  };
  pool_.parallel_for(static_cast<int64_t>(segments_.size()) * shape.num_heads, 1, attend);
}

}  // namespace nibble
