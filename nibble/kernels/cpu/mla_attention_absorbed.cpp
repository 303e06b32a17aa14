// The absorbed form: q' = W_UK^T q_nope for all tokens of a head at once, attention in the latent
// space (the heads of a token are rows against the same keys), then W_UV, again for all tokens of a
// head at once, so that a batch reads kv_b_proj once.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/attention_tiles.h"
#include "nibble/kernels/cpu/bf16_attention.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

constexpr int64_t kAbsorbedTokens = 64;  // of one pass; they bound the scratch
constexpr int64_t kAbsorbedRows = 512;   // query rows (tokens x heads) of one task
// Up to so many heads read the entries as they are stored; more share entries that are made into
// panels. A property of the model, never of the batch, because the two differ in their last bits.
constexpr int64_t kFewHeads = 16;

}  // namespace

void CpuKernels::attend_absorbed(const MatrixView& q, const MlaUpWeight& weight,
                                 const MlaShape& shape, const AttentionBatch& batch,
                                 const KvCacheView& cache, const MatrixView& out) {
  // Passes of at most kAbsorbedTokens, in pieces of few enough tokens for one task.
  const int64_t piece = std::max<int64_t>(1, kAbsorbedRows / shape.num_heads);
  segments_.clear();
  int64_t tokens = 0;
  for (const AttentionSegment& segment : batch.segments) {
    if (segment.form != MlaForm::kAbsorbed) continue;
    for (int64_t first = 0; first < segment.num_tokens;) {
      AttentionSegment part = segment;
      part.first_token += first;
      part.first_position += first;
      part.num_tokens = std::min({piece, segment.num_tokens - first, kAbsorbedTokens - tokens});
      segments_.push_back(part);
      first += part.num_tokens;
      tokens += part.num_tokens;
      if (tokens == kAbsorbedTokens) {
        attend_absorbed_tokens(q, weight, shape, cache, tokens, out);
        segments_.clear();
        tokens = 0;
      }
    }
  }
  if (tokens > 0) attend_absorbed_tokens(q, weight, shape, cache, tokens, out);
}

void CpuKernels::attend_absorbed_tokens(const MatrixView& q, const MlaUpWeight& weight,
                                        const MlaShape& shape, const KvCacheView& cache,
                                        int64_t tokens, const MatrixView& out) {
  const MlaPanels panels(shape);
  const PanelMatrix up = panel_matrix(weight.kv_b_proj, mla_up_rows(weight.kv_b_proj));
  const PanelMatrix trans = panel_matrix(weight.kv_b_k_trans, mla_up_rows(weight.kv_b_k_trans));
  const float query_scale = output_scale(weight.kv_b_k_trans, trans.rows);
  const int64_t heads = shape.num_heads;
  const int64_t latent = panels.latent * kPanelRows;    // kv_lora_rank, padded
  const int64_t dim = latent + shape.qk_rope_head_dim;  // of a query row
  float* const queries = activations_.reserve(*device_, tokens * heads * dim);
  float* const latents = products_.reserve(*device_, tokens * heads * latent);

  // batch_rows_[i]: the row in the batch of the pass's token i; segment_rows_[s]: the pass's first
  // token of piece s.
  batch_rows_.clear();
  segment_rows_.clear();
  for (const AttentionSegment& segment : segments_) {
    segment_rows_.push_back(static_cast<int64_t>(batch_rows_.size()));
    for (int64_t i = 0; i < segment.num_tokens; ++i) batch_rows_.push_back(segment.first_token + i);
  }

  const int64_t nope_floats = slices_of(shape.qk_nope_head_dim) * kSliceCols * tokens;
  const int64_t latent_slice_floats = slices_of(shape.kv_lora_rank) * kSliceCols * tokens;
  const int64_t weight_scratch = ScratchCursor::padded(weight_floats(tokens, 1));
  const int64_t value_floats = tokens * panels.value * kPanelRows;
  const int64_t key_floats = slices_of(dim) * kGroupFloats;
  const int64_t most_rows = std::max(kAbsorbedRows, heads);
  const bool as_stored = heads <= kFewHeads && shape.kv_lora_rank % kPanelRows == 0 &&
                         shape.qk_rope_head_dim % kPanelRows == 0;
  const bool use_bf16 = bf16() && !as_stored;
  const bool use_tiles = tiles_ != nullptr && !as_stored && !use_bf16;
  // BF16 entries become tiles as they are.
  const bool stored_tiles =
      use_tiles && cache.dtype == DType::kBf16 && shape.kv_lora_rank % kPanelRows == 0;
  const AttentionTiles::Planes planes = attention_planes(cache.dtype != DType::kF32);
  const int64_t block_floats =
      use_bf16 ? Bf16Attention::scratch_floats(most_rows, dim, panels.latent) +
                     LatentBlocks::scratch_floats(shape)
      : use_tiles ? AttentionTiles::scratch_floats(most_rows, dim, panels.latent, planes)
                  : attend_block_floats(dim);
  reserve_thread_scratch(std::max({
      nope_floats + weight_scratch,
      latent_slice_floats + weight_scratch + value_floats,
      key_floats + panels.latent * kPanelFloats +
          ScratchCursor::padded(kContextBlock * shape.entry_size()) + block_floats +
          AttentionRows::scratch_floats(most_rows, panels.latent),
  }));

  // queries [tokens, heads, dim]
  const auto absorb = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t head = begin; head < end; ++head) {
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const slices = scratch.take(nope_floats);
      float* const weights = scratch.take(weight_scratch);
      for (int64_t i = 0; i < tokens; ++i) {
        const float* const row =
            q.row<float>(batch_rows_[static_cast<size_t>(i)]) + head * shape.qk_head_dim();
        copy_to_slices(&row, 1, weight.kv_b_k_trans, trans.rows, i, tokens, slices);
      }
      for (int64_t p = 0; p < panels.latent; p += kGroupPanels) {
        multiply_panels(trans, head * panels.latent + p,
                        std::min<int64_t>(kGroupPanels, panels.latent - p), slices, tokens,
                        queries + head * dim + p * kPanelRows, heads * dim, kPanelRows, weights);
      }
      for (int64_t i = 0; i < tokens; ++i) {
        float* const query = queries + (i * heads + head) * dim;
        if (query_scale != 1) isa_->scale(query, latent, query_scale);
        const float* const row = q.row<float>(batch_rows_[static_cast<size_t>(i)]) +
                                 head * shape.qk_head_dim() + shape.qk_nope_head_dim;
        std::copy_n(row, shape.qk_rope_head_dim, query + latent);
      }
    }
  };
  pool_.parallel_for(heads, 1, absorb);

  // Heads of a token are split only as far as there are threads without a token.
  const auto pieces = static_cast<int64_t>(segments_.size());
  const int64_t head_groups =
      std::min(heads, std::max<int64_t>(1, ceil_div(pool_.num_threads(), pieces)));
  // Tiles are of 16 heads.
  const int64_t group_unit = use_bf16 ? std::min<int64_t>(heads, kPanelRows) : 1;
  const int64_t group_heads = ceil_div(ceil_div(heads, head_groups), group_unit) * group_unit;
  const auto attend = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t task = begin; task < end; ++task) {
      const AttentionSegment& segment = segments_[static_cast<size_t>(task / head_groups)];
      const int64_t first_row = segment_rows_[static_cast<size_t>(task / head_groups)];
      const int64_t first_head = task % head_groups * group_heads;
      const int64_t num_heads = std::min(group_heads, heads - first_head);
      if (num_heads <= 0) continue;
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const keys = scratch.take(key_floats);
      float* const values = scratch.take(panels.latent * kPanelFloats);
      float* const entries = scratch.take(kContextBlock * shape.entry_size());
      AttentionRows rows;
      rows.rows = segment.num_tokens * num_heads;
      rows.per_token = num_heads;
      rows.q = queries + (first_row * heads + first_head) * dim;
      rows.token_stride = heads * dim;
      rows.row_stride = dim;
      rows.dim = dim;
      rows.first_visible = segment.first_position + 1;
      rows.value_panels = panels.latent;
      rows.softmax_scale = shape.softmax_scale;
      if (use_bf16) {
        Bf16Attention attention(*tiles_, rows, scratch);
        LatentBlocks blocks(*isa_, *tiles_, cache, shape, segment, scratch);
        const int64_t context = segment.first_position + segment.num_tokens;
        for (int64_t start = 0; start < context; start += kTileContext) {
          attention.attend(blocks.block(start, context));
        }
        for (int64_t m = 0; m < rows.rows; ++m) {
          const int64_t token = first_row + m / num_heads;
          attention.result(m, 1, latent,
                           latents + (token * heads + first_head + m % num_heads) * latent);
        }
        continue;
      }
      if (use_tiles) rows.softmax_scale *= AttentionTiles::kFactor;
      rows.start(scratch);
      std::optional<AttentionTiles> tiles;
      float* block_scratch = nullptr;
      if (use_tiles) {
        tiles.emplace(*tiles_, planes, rows, scratch);
      } else {
        block_scratch = scratch.take(block_floats);
      }

      const int64_t context = segment.first_position + segment.num_tokens;
      for (int64_t start = 0; start < context; start += kContextBlock) {
        const int64_t valid = std::min(kContextBlock, context - start);
        const auto stored = [&](int64_t p) {
          return static_cast<const std::byte*>(cache.data) +
                 cache.entry_offset(segment.block_table, segment.slot(start + p)) *
                     dtype_size(cache.dtype);
        };
        if (as_stored) {
          std::array<const void*, kContextBlock> stored_entries = {};
          for (int64_t p = 0; p < valid; ++p) stored_entries[static_cast<size_t>(p)] = stored(p);
          attend_entries(*isa_, rows, start, cache_format(cache.dtype), stored_entries.data(),
                         block_scratch);
          continue;
        }
        if (stored_tiles) {
          std::array<const uint16_t*, kContextBlock> stored_entries = {};
          for (int64_t p = 0; p < valid; ++p) {
            stored_entries[static_cast<size_t>(p)] = reinterpret_cast<const uint16_t*>(stored(p));
          }
          tiles->set_entries(valid, stored_entries.data());
          tiles->attend(*isa_, start);
          continue;
        }
        for (int64_t p = 0; p < valid; ++p) {
          float* const entry = entries + p * shape.entry_size();
          read_cache(*isa_, cache, segment.block_table, segment.slot(start + p), 0,
                     shape.entry_size(), entry);
          for (int64_t c = 0; c < latent; c += kPanelRows) {
            float* const value = values + c / kPanelRows * kPanelFloats + p * kPanelRows;
            const int64_t count = std::min<int64_t>(kPanelRows, shape.kv_lora_rank - c);
            if (count == kPanelRows) {  // a known size is a vector move, another one a call
              std::copy_n(entry + c, kPanelRows, value);
              continue;
            }
            std::copy_n(entry + c, count, value);
            std::fill_n(value + count, kPanelRows - count, 0.0f);
          }
        }
        for (int64_t first = 0; first < valid; first += kPanelRows) {
          fill_keys(*isa_, entries, shape.entry_size(), first, valid, 0, shape.kv_lora_rank, keys);
          // Zeros against the padding of q'.
          fill_keys(*isa_, entries, 0, first, 0, shape.kv_lora_rank, latent - shape.kv_lora_rank,
                    keys);
          fill_keys(*isa_, entries + shape.kv_lora_rank, shape.entry_size(), first, valid, latent,
                    shape.qk_rope_head_dim, keys);
        }
        if (tiles) {
          tiles->set_entries(valid, keys, values);
          tiles->attend(*isa_, start);
        } else {
          attend_block(*isa_, rows, start, keys, values, block_scratch);
        }
      }
      const float factor = use_tiles ? AttentionTiles::kFactor : 1;
      for (int64_t m = 0; m < rows.rows; ++m) {
        const int64_t token = first_row + m / num_heads;
        float* const row = latents + (token * heads + first_head + m % num_heads) * latent;
        const float* const sums = rows.sums + m * latent;
        for (int64_t i = 0; i < latent; ++i) {
          row[i] = factor * sums[i] / rows.total[m];
        }
      }
    }
  };
  pool_.parallel_for(pieces * head_groups, 1, attend);

  const float alpha = output_scale(weight.kv_b_proj, up.rows);
  const auto expand = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t head = begin; head < end; ++head) {
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const slices = scratch.take(latent_slice_floats);
      float* const weights = scratch.take(weight_scratch);
      float* const values = scratch.take(value_floats);
      const int64_t stride = panels.value * kPanelRows;
      for (int64_t i = 0; i < tokens; ++i) {
        const float* const row = latents + (i * heads + head) * latent;
        copy_to_slices(&row, 1, weight.kv_b_proj, up.rows, i, tokens, slices);
      }
      for (int64_t p = 0; p < panels.value; p += kGroupPanels) {
        multiply_panels(up, head * panels.head() + panels.nope + p,
                        std::min<int64_t>(kGroupPanels, panels.value - p), slices, tokens,
                        values + p * kPanelRows, stride, kPanelRows, weights);
      }
      for (int64_t i = 0; i < tokens; ++i) {
        float* const row =
            out.row<float>(batch_rows_[static_cast<size_t>(i)]) + head * shape.v_head_dim;
        for (int64_t j = 0; j < shape.v_head_dim; ++j) row[j] = alpha * values[i * stride + j];
      }
    }
  };
  pool_.parallel_for(heads, 1, expand);
}

}  // namespace nibble
