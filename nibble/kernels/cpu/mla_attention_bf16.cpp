// The expanded form with queries, keys and values of BF16 in tiles. A head's keys and values of up
// to kExpandedPositions positions are made once for all the prompt's tokens, kTileContext at a
// time, and stay in the thread's scratch, from which runs of query tokens take them.
//
// The cache is read once for all heads: latents become the rows of tiles that kv_b_proj meets.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/bf16_attention.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

constexpr int64_t kExpandedPositions = 4096;
constexpr int64_t kPartTokens = 4096;  // that share an expansion; they bound the scratch
constexpr int64_t kRunTokens = 512;    // whose queries and sums stay in L2
constexpr int64_t kContextTiles = kTileContext / kPanelRows;

}  // namespace

void CpuKernels::attend_expanded_bf16(const MatrixView& q, const MlaUpWeight& weight,
                                      const MlaShape& shape, const AttentionBatch& batch,
                                      const KvCacheView& cache, const MatrixView& out) {
  segments_.clear();
  segment_rows_.clear();  // of a part: the first block of its latents
  tasks_.clear();
  std::vector<const AttentionSegment*> sources;
  std::vector<int64_t> contexts;  // of a part: the positions of its whole segment
  int64_t blocks = 0;
  int64_t most_tokens = 0;
  int64_t most_blocks = 0;
  for (const AttentionSegment& segment : batch.segments) {
    if (segment.form != MlaForm::kExpanded) continue;
    for_parts(segment, kPartTokens, [&](const AttentionSegment& part) {
      most_tokens = std::max(most_tokens, part.num_tokens);
      segments_.push_back(part);
      segment_rows_.push_back(blocks);
      contexts.push_back(segment.first_position + segment.num_tokens);
    });
    const int64_t count = ceil_div(segment.first_position + segment.num_tokens, kTileContext);
    for (int64_t i = 0; i < count; ++i) {
      tasks_.push_back({static_cast<int32_t>(sources.size()), static_cast<int32_t>(i), 1});
    }
    sources.push_back(&segment);
    most_blocks = std::max(most_blocks, std::min(count, kExpandedPositions / kTileContext));
    blocks += count;
  }
  if (segments_.empty()) return;

  const MlaPanels panels(shape);
  const LinearWeight& up = weight.kv_b_proj;
  const PanelMatrix matrix = panel_matrix(up, mla_up_rows(up));
  const float alpha = output_scale(up, matrix.rows);
  const int64_t latent_floats =
      slices_of(shape.kv_lora_rank) * kTileContext * row_slice_floats(matrix.rows);
  const int64_t rope = shape.qk_rope_head_dim;
  const int64_t rope_floats = ceil_div(kTileContext * rope, 2);
  float* const latents = activations_.reserve(*device_, blocks * latent_floats);
  float* const ropes = products_.reserve(*device_, blocks * rope_floats);

  reserve_thread_scratch(ScratchCursor::padded(kSliceCols) + ScratchCursor::padded(rope));
  const auto read = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const piece = scratch.take(kSliceCols);
    float* const rope_piece = scratch.take(rope);
    for (int64_t i = begin; i < end; ++i) {
      const RunTask& task = tasks_[static_cast<size_t>(i)];
      const AttentionSegment& segment = *sources[static_cast<size_t>(task.run)];
      const int64_t start = task.group * kTileContext;
      const int64_t valid =
          std::min(kTileContext, segment.first_position + segment.num_tokens - start);
      float* const slices = latents + i * latent_floats;
      auto* const rope_rows = reinterpret_cast<uint16_t*>(ropes + i * rope_floats);
      for (int64_t p = 0; p < valid; ++p) {
        const int64_t slot = segment.slot(start + p);
        for (int64_t c = 0; c < shape.kv_lora_rank; c += kSliceCols) {
          const int64_t count = std::min<int64_t>(kSliceCols, shape.kv_lora_rank - c);
          read_cache(*isa_, cache, segment.block_table, slot, c, count, piece);
          copy_slice(piece, count, up, matrix.rows, p, valid,
                     slices + c / kSliceCols * valid * row_slice_floats(matrix.rows));
        }
        read_cache(*isa_, cache, segment.block_table, slot, shape.kv_lora_rank, rope, rope_piece);
        tiles_->round(rope_piece, rope, 1, rope_rows + p * rope);
      }
    }
  };
  pool_.parallel_for(blocks, 1, read);

  const int64_t dim = shape.qk_head_dim();
  const int64_t width = tile_width(dim);
  const int64_t value_bytes = panels.value * kTileValueBytes;  // of a block
  const int64_t key_floats = most_blocks * kTileContext * width / 2;
  const int64_t value_floats = most_blocks * value_bytes / 4;
  const int64_t key_product = kTileContext * panels.nope * kPanelRows;
  const int64_t value_product = kTileContext * panels.value * kPanelRows;
  const int64_t weight_scratch = weight_floats(kTileContext, 1);
  int64_t state = 0;  // of all runs of a part
  for (int64_t first = 0; first < most_tokens; first += kRunTokens) {
    state +=
        Bf16Attention::scratch_floats(std::min(kRunTokens, most_tokens - first), dim, panels.value);
  }
  reserve_thread_scratch(key_floats + value_floats + key_product + value_product +
                         ScratchCursor::padded(weight_scratch) + state);

  const auto attend = [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t task = begin; task < end; ++task) {
      const auto part = static_cast<size_t>(task / shape.num_heads);
      const AttentionSegment& segment = segments_[part];
      const int64_t head = task % shape.num_heads;
      ScratchCursor scratch = thread_scratch(thread_id);
      auto* const keys = reinterpret_cast<uint16_t*>(scratch.take(key_floats));
      auto* const values = reinterpret_cast<uint8_t*>(scratch.take(value_floats));
      float* const key_sums = scratch.take(key_product);
      float* const value_sums = scratch.take(value_product);
      float* const weights = scratch.take(weight_scratch);

      // Block `block` of the context becomes the scratch's `place`, with positions beyond the part,
      // too: how many there are settles where `read` has put what.
      const auto expand = [&](int64_t block, int64_t place) {
        const int64_t valid = std::min(kTileContext, contexts[part] - block * kTileContext);
        const int64_t at = segment_rows_[part] + block;
        const float* const slices = latents + at * latent_floats;
        for (int64_t p = 0; p < panels.nope; p += kGroupPanels) {
          multiply_panels(matrix, head * panels.head() + p,
                          std::min<int64_t>(kGroupPanels, panels.nope - p), slices, valid,
                          key_sums + p * kPanelRows, panels.nope * kPanelRows, kPanelRows, weights);
        }
        for (int64_t p = 0; p < panels.value; p += kGroupPanels) {
          multiply_panels(matrix, head * panels.head() + panels.nope + p,
                          std::min<int64_t>(kGroupPanels, panels.value - p), slices, valid,
                          value_sums + p * kTileContext * kPanelRows, kPanelRows,
                          kTileContext * kPanelRows, weights);
        }
        const auto* const rope_rows = reinterpret_cast<const uint16_t*>(ropes + at * rope_floats);
        for (int64_t p = 0; p < valid; ++p) {
          uint16_t* const key = keys + (place * kTileContext + p) * width;
          tiles_->round(key_sums + p * panels.nope * kPanelRows, shape.qk_nope_head_dim, alpha,
                        key);
          std::memcpy(key + shape.qk_nope_head_dim, rope_rows + p * rope,
                      static_cast<size_t>(rope) * sizeof(uint16_t));
          std::fill(key + dim, key + width, uint16_t{0});
        }
        for (int64_t p = 0; p < panels.value; ++p) {
          tiles_->expand_floats(value_sums + p * kTileContext * kPanelRows, valid, 1,
                                values + place * value_bytes + p * kTileValueBytes);
        }
      };

      std::array<std::optional<Bf16Attention>, kPartTokens / kRunTokens> runs;
      for (int64_t first = 0; first < segment.num_tokens; first += kRunTokens) {
        AttentionRows rows;
        rows.rows = std::min(kRunTokens, segment.num_tokens - first);
        rows.q = q.row<float>(segment.first_token + first) + head * dim;
        rows.token_stride = q.stride;
        rows.dim = dim;
        rows.first_visible = segment.first_position + first + 1;
        rows.value_panels = panels.value;
        rows.softmax_scale = shape.softmax_scale;
        runs[static_cast<size_t>(first / kRunTokens)].emplace(*tiles_, rows, scratch);
      }
      const int64_t context = segment.first_position + segment.num_tokens;
      for (int64_t start = 0; start < context; start += kExpandedPositions) {
        const int64_t end_position = std::min(context, start + kExpandedPositions);
        for (int64_t p = start; p < end_position; p += kTileContext) {
          expand(p / kTileContext, (p - start) / kTileContext);
        }
        for (size_t run = 0; run < runs.size() && runs[run]; ++run) {
          const int64_t seen = std::min<int64_t>(
              end_position, segment.first_position + static_cast<int64_t>(run + 1) * kRunTokens);
          for (int64_t p = start; p < seen; p += kTileContext) {
            const int64_t place = (p - start) / kTileContext;
            std::array<const void*, kContextTiles> tiles = {};
            for (size_t t = 0; t < tiles.size(); ++t) {
              tiles[t] =
                  keys + (place * kTileContext + static_cast<int64_t>(t) * kPanelRows) * width;
            }
            runs[run]->attend({p, tiles.data(), width * 2, values + place * value_bytes});
          }
        }
      }
      for (int64_t t = 0; t < segment.num_tokens; ++t) {
        runs[static_cast<size_t>(t / kRunTokens)]->result(
            t % kRunTokens, alpha, shape.v_head_dim,
            out.row<float>(segment.first_token + t) + head * shape.v_head_dim);
      }
    }
  };
  pool_.parallel_for(static_cast<int64_t>(segments_.size()) * shape.num_heads, 1, attend);
}

}  // namespace nibble
