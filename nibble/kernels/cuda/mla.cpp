// The MLA operations. Both forms of AttentionSegment are equal in value; a short prompt is computed
// absorbed, too.
#include <algorithm>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/expand.h"
#include "nibble/kernels/cuda/head_products.h"
#include "nibble/kernels/cuda/mla_prompt.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kMergeFloats = int64_t{1} << 28;        // 1 GiB for partial results
constexpr int64_t kExpandedKeyValues = int64_t{1} << 28;  // 512 MiB of BF16
constexpr int64_t kExpandedPositions = 163840;            // R1's longest context
// At a time, so that many short prompts need no more memory than a long one.
constexpr int64_t kAbsorbedTokens = 512;

// mla_decode.cu's larger kernel; GPUs with less shared memory take mla_attend.cu.
constexpr int kMlaDecodeShared = 225 << 10;

bool on_tensor_cores(int parts, const MlaShape& shape, const KvCacheView& cache) {
  return parts == 1 && mla_decode_fits(shape, cache) && most_shared_bytes() >= kMlaDecodeShared;
}

}  // namespace

const int32_t* CudaKernels::upload_positions(const AttentionBatch& batch) {
  std::vector<int32_t> positions(static_cast<size_t>(batch.num_tokens));
  for (const AttentionSegment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      positions[static_cast<size_t>(segment.first_token + i)] =
          static_cast<int32_t>(segment.first_position + i);
    }
  }
  return positions_.put(std::span<const int32_t>(positions));
}

const int64_t* CudaKernels::upload_entries(const AttentionBatch& batch, const KvCacheView& cache) {
  std::vector<int64_t> entries(static_cast<size_t>(batch.num_tokens));
  for (const AttentionSegment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      entries[static_cast<size_t>(segment.first_token + i)] =
          cache.entry_offset(segment.block_table, segment.slot(segment.first_position + i));
    }
  }
  return entries_.put(std::span<const int64_t>(entries));
}

bool CudaKernels::upload_views(const AttentionBatch& batch, const KvCacheView& cache,
                               AttendArgs& attend) {
  std::vector<TokenView> views(static_cast<size_t>(batch.num_tokens));
  std::vector<int32_t> tables;
  attend.max_visible = context_bound_;
  attend.batch_invariant = batch_invariant_;
  for (const AttentionSegment& segment : batch.segments) {
    const int64_t last = segment.first_position + segment.num_tokens;
    const int64_t blocks = segment.slot(last - 1) / cache.block_size + 1;
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      views[static_cast<size_t>(segment.first_token + i)] = {
          segment.first_position + i + 1, static_cast<int64_t>(tables.size()), segment.slot_offset};
    }
    tables.insert(tables.end(), segment.block_table, segment.block_table + blocks);
    attend.max_visible = std::max(attend.max_visible, last);
  }
  attend.views = views_.put(std::span<const TokenView>(views));
  attend.tables = tables_.put(std::span<const int32_t>(tables));
  return attend.views != nullptr && attend.tables != nullptr;
}

void CudaKernels::rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                               const AttentionBatch& batch) {
  if (q.rows == 0) return;
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(2 * rope.half_dim == shape.qk_rope_head_dim);
  for (const AttentionSegment& segment : batch.segments) {
    NIBBLE_CHECK(segment.first_position + segment.num_tokens <= rope.max_positions);
  }
  const int32_t* const positions = upload_positions(batch);
  if (positions == nullptr) return;
  writes(q);
  launch_rotary_query(q, shape, rope, positions, stream_);
  keep(cudaGetLastError(), "rotary_query");
}

void CudaKernels::mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm,
                                  float epsilon, const MlaShape& shape, const RopeTable& rope,
                                  const AttentionBatch& batch, const KvCacheView& cache) {
  if (kv_a.rows == 0) return;
  NIBBLE_CHECK(kv_a.cols == shape.entry_size() && cache.entry_size == shape.entry_size());
  for (const AttentionSegment& segment : batch.segments) {
    NIBBLE_CHECK(segment.first_position + segment.num_tokens <= rope.max_positions);
  }
  const int32_t* const positions = upload_positions(batch);
  const int64_t* const offsets = upload_entries(batch, cache);
  if (positions == nullptr || offsets == nullptr) return;
  launch_mla_cache_write(kv_a, kv_a_layernorm, epsilon, shape, rope, positions, offsets, cache,
                         stream_);
  keep(cudaGetLastError(), "mla_cache_write");
}

void CudaKernels::mla_prepare(const MatrixView& q, const MatrixView& kv_a,
                              const float* kv_a_layernorm, float epsilon, const MlaShape& shape,
                              const RopeTable& rope, const AttentionBatch& batch,
                              const KvCacheView& cache) {
  if (q.rows == 0) return;
  NIBBLE_CHECK(q.rows == kv_a.rows && q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(2 * rope.half_dim == shape.qk_rope_head_dim);
  NIBBLE_CHECK(kv_a.cols == shape.entry_size() && cache.entry_size == shape.entry_size());
  for (const AttentionSegment& segment : batch.segments) {
    NIBBLE_CHECK(segment.first_position + segment.num_tokens <= rope.max_positions);
  }
  const int32_t* const positions = upload_positions(batch);
  const int64_t* const entries = upload_entries(batch, cache);
  if (positions == nullptr || entries == nullptr) return;
  writes(q);
  launch_mla_prepare(q, kv_a, kv_a_layernorm, epsilon, shape, rope, positions, entries, cache,
                     stream_);
  keep(cudaGetLastError(), "mla_prepare");
}

// On tensor cores where the widths allow it and activations may be rounded to BF16. Generated
// tokens are few and their positions are spread over the GPU; a prompt's tokens fill it by their
// number.
void CudaKernels::attend_latents(const AttendArgs& attend, const AttentionBatch& batch) {
  if (!on_tensor_cores(parts_, attend.shape, attend.cache)) {
    keep(launch_mla_attend(attend, stream_), "mla_attention");
    return;
  }
  const int64_t heads = attend.shape.num_heads;
  for (size_t i = 0; i < batch.segments.size();) {
    // Neighbouring segments of one form go together.
    const MlaForm form = batch.segments[i].form;
    const int64_t first = batch.segments[i].first_token;
    int64_t last = first;
    for (; i < batch.segments.size() && batch.segments[i].form == form; ++i) {
      last = batch.segments[i].first_token + batch.segments[i].num_tokens;
    }
    // Runs give a few tokens' blocks the whole GPU; many tokens fill it without.
    int max_runs = form == MlaForm::kExpanded ? 1 : kInvariantMlaRuns;
    if (max_runs > 1 && !batch_invariant_) {
      max_runs = mla_runs(last - first, attend.shape, attend.cache, attend.max_visible);
    }
    const int64_t most =
        std::max<int64_t>(1, kMergeFloats / mla_decode_scratch(1, heads, max_runs));
    const int64_t step = max_runs > 1 ? most : last - first;
    for (int64_t t = first; t < last; t += step) {
      const int64_t tokens = std::min(step, last - t);
      float* const scratch =
          merge_scratch_.get<float>(max_runs > 1 ? mla_decode_scratch(tokens, heads, max_runs) : 1);
      if (scratch == nullptr) return;
      keep(launch_mla_decode(attend, t, tokens, max_runs, scratch, stream_), "mla_attention");
    }
  }
}

// A kernel that reads weights once for up to 64 tokens; not where a token's bits may not depend on
// its batch, as few tokens are sooner done otherwise.
bool CudaKernels::takes_head_products(const MlaUpWeight& weight, const MlaShape& shape,
                                      const MatrixView& q) const {
  constexpr int64_t kFewTokens = 4;
  return !batch_invariant_ && q.rows > kFewTokens &&
         weight.kv_b_proj.format == LinearFormat::kBf16 && shape.qk_nope_head_dim == 128 &&
         shape.v_head_dim == 128 && q.stride % 4 == 0 && shape.qk_head_dim() % 4 == 0 &&
         reinterpret_cast<uintptr_t>(q.data) % 16 == 0;
}

// Sums of cuBLASLt and of a segment's own tiles: not where a token's bits may not depend on its
// batch.
bool CudaKernels::expands_prompts(const MlaUpWeight& weight, const MlaShape& shape,
                                  const KvCacheView& cache) const {
  return parts_ == 1 && !batch_invariant_ && cublas_lt_ != nullptr &&
         weight.kv_b_proj.format == LinearFormat::kBf16 && mla_prompt_fits(shape, cache);
}

// Some heads at a time, so that their keys and values of all positions stay small; each head is
// done at once, whatever the length of the context.
void CudaKernels::attend_expanded(const MatrixView& q, const MlaUpWeight& weight,
                                  const AttendArgs& attend, const AttentionSegment& segment,
                                  const MatrixView& out) {
  const MlaShape& shape = attend.shape;
  const int64_t rank = shape.kv_lora_rank;
  const int64_t nope = shape.qk_nope_head_dim;
  const int64_t width = shape.v_head_dim;
  const int64_t length = segment.first_position + segment.num_tokens;
  const int64_t head_values = length * (nope + width);
  const int64_t most = std::clamp<int64_t>(kExpandedKeyValues / head_values, 1, shape.num_heads);
  const int64_t groups = ceil_div(shape.num_heads, most);
  const int64_t step = ceil_div(shape.num_heads, groups);
  // Room for short prompts and for the last chunk of a long one, too: a profiling pass brings its
  // first chunk alone, and memory that grew later would be the cache's, and would make recorded
  // steps void on this rank and not on others.
  const int64_t most_absorbed = kAbsorbedTokens * shape.num_heads * rank * 2;
  auto* const latents = latent_scratch_.get<uint16_t>(
      std::max(std::max(length, kExpandedPositions) * shape.entry_size(), most_absorbed));
  auto* const keys = absorbed_scratch_.get<uint16_t>(
      std::max({step * head_values, kExpandedKeyValues, most_absorbed}));
  auto* const plain = expand_scratch_.get<uint16_t>(step * rank * (nope + width));
  if (latents == nullptr || keys == nullptr || plain == nullptr) return;
  uint16_t* const rope = latents + length * rank;
  uint16_t* const values = keys + step * length * nope;
  uint16_t* const plain_v = plain + step * rank * nope;
  keep(launch_gather_latents(attend, segment.first_token, length, latents, rope, stream_),
       "mla_attention: latents");
  for (int64_t head = 0; head < shape.num_heads; head += step) {
    const int64_t heads = std::min(step, shape.num_heads - head);
    // W_UK of a head is packed transposed: [rank, nope].
    keep(launch_expand(weight.kv_b_k_trans, head * rank / kTileRows, heads * rank / kTileRows,
                       plain, stream_),
         "mla_attention: weights of keys");
    keep(launch_expand(weight.kv_b_proj, head * width / kTileRows, heads * width / kTileRows,
                       plain_v, stream_),
         "mla_attention: weights of values");
    const float scale = weight.kv_b_proj.global_scale;
    if (!cublas_lt_->expand_heads({latents, length, rank}, plain, true, nope, heads, scale, keys,
                                  stream_) ||
        !cublas_lt_->expand_heads({latents, length, rank}, plain_v, false, width, heads, scale,
                                  values, stream_)) {
      return keep(cudaErrorUnknown, "cublasLtMatmul for keys and values");
    }
    PromptArgs args;
    args.q = q.row<const float>(0) + head * shape.qk_head_dim();
    args.q_stride = q.stride;
    args.keys = keys;
    args.rope = rope;
    args.values = values;
    args.out = out.row<float>(0) + head * width;
    args.out_stride = out.stride;
    args.heads = static_cast<int>(heads);
    args.tokens = segment.num_tokens;
    args.first_position = segment.first_position;
    args.length = length;
    args.softmax_scale = shape.softmax_scale;
    keep(launch_mla_prompt(args, stream_), "mla_attention of a prompt");
  }
}

// Long prompts in expanded form, runs of other segments absorbed.
void CudaKernels::mla_attention(const MatrixView& q, const MlaUpWeight& weight,
                                const MlaShape& shape, const AttentionBatch& batch,
                                const KvCacheView& cache, const MatrixView& out) {
  if (q.rows == 0) return;
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(out.cols == shape.num_heads * shape.v_head_dim);
  AttendArgs attend;
  if (!upload_views(batch, cache, attend)) return;
  attend.shape = shape;
  attend.cache = cache;
  const bool may_expand = expands_prompts(weight, shape, cache);
  const auto is_long = [&](const AttentionSegment& segment) {
    return may_expand && segment.form == MlaForm::kExpanded &&
           mla_prompt_pays(segment.num_tokens, segment.first_position + segment.num_tokens);
  };
  Bf16Copy copy;
  if (std::none_of(batch.segments.begin(), batch.segments.end(), is_long)) {
    copy = writes_copied(out);
  } else {
    writes(out);
  }
  int64_t done = 0;  // tokens of segment i
  for (size_t i = 0; i < batch.segments.size();) {
    const AttentionSegment& segment = batch.segments[i];
    const int64_t first = segment.first_token + done;
    if (done == 0 && is_long(segment)) {
      attend_expanded(q.slice_rows(first, segment.num_tokens), weight, attend, segment,
                      out.slice_rows(first, segment.num_tokens));
      ++i;
      continue;
    }
    int64_t tokens = 0;
    std::vector<AttentionSegment> segments;
    while (i < batch.segments.size() && tokens < kAbsorbedTokens &&
           (done > 0 || !is_long(batch.segments[i]))) {
      AttentionSegment& part = segments.emplace_back(batch.segments[i]);
      part.first_token = tokens;
      part.first_position += done;
      part.num_tokens = std::min(part.num_tokens - done, kAbsorbedTokens - tokens);
      tokens += part.num_tokens;
      done += part.num_tokens;
      if (done < batch.segments[i].num_tokens) continue;
      done = 0;
      ++i;
    }
    AttendArgs part = attend;
    part.views += first;
    Bf16Copy part_copy = copy;
    if (copy.data != nullptr) part_copy.data += first * copy.row_stride;
    attend_absorbed(q.slice_rows(first, tokens), weight, part, {tokens, segments},
                    out.slice_rows(first, tokens), part_copy);
  }
}

void CudaKernels::attend_absorbed(const MatrixView& q, const MlaUpWeight& weight, AttendArgs attend,
                                  const AttentionBatch& batch, const MatrixView& out,
                                  const Bf16Copy& out_copy) {
  const MlaShape& shape = attend.shape;
  const int64_t tokens = q.rows;
  const int64_t heads = shape.num_heads;
  const int64_t rank = shape.kv_lora_rank;

  auto* const absorbed = absorbed_scratch_.get<float>(tokens * heads * rank);
  auto* const latent = latent_scratch_.get<float>(tokens * heads * rank);
  const int64_t nope_cols = ceil_div(shape.qk_nope_head_dim, kUnitCols) * kUnitCols;
  const int64_t rank_cols = ceil_div(rank, kUnitCols) * kUnitCols;
  auto* const x =
      x_scratch_.get<uint16_t>(parts_ * tokens * heads * std::max(nope_cols, rank_cols));
  if (absorbed == nullptr || latent == nullptr || x == nullptr) return;

  attend.absorbed = absorbed;
  attend.q = q.row<const float>(0);
  attend.q_stride = q.stride;
  attend.tokens = tokens;
  attend.out = latent;
  // Where the next product would round them anyway, latents are left in BF16.
  const bool rounded = on_tensor_cores(parts_, shape, attend.cache);
  if (rounded) {
    NIBBLE_CHECK(rank_cols == rank);
    attend.out_bf16 = x;
  }

  if (rounded && takes_head_products(weight, shape, q)) {
    HeadProductArgs product;
    product.weights = static_cast<const uint8_t*>(weight.kv_b_k_trans.data);
    product.scale = weight.kv_b_k_trans.global_scale;
    product.rows = static_cast<int>(rank);
    product.cols = static_cast<int>(shape.qk_nope_head_dim);
    product.heads = static_cast<int>(heads);
    product.tokens = tokens;
    product.x_float = q.row<const float>(0);
    product.x_stride = q.stride;
    product.x_head_stride = shape.qk_head_dim();
    product.out = absorbed;
    product.out_stride = heads * rank;
    keep(launch_head_products(product, stream_), "mla_attention: absorption");
    attend_latents(attend, batch);
    product.weights = static_cast<const uint8_t*>(weight.kv_b_proj.data);
    product.scale = weight.kv_b_proj.global_scale;
    product.rows = static_cast<int>(shape.v_head_dim);
    product.cols = static_cast<int>(rank);
    product.x_float = nullptr;
    product.x = x;
    product.x_stride = heads * rank;
    product.x_head_stride = rank;
    product.out = out.row<float>(0);
    product.out_stride = out.stride;
    product.out_copy = out_copy.data;
    product.out_copy_stride = out_copy.row_stride;
    keep(launch_head_products(product, stream_), "mla_attention: values");
    return;
  }

  // q' = W_UK^T q_nope, a product of its own for each head.
  ConvertArgs convert;
  convert.x = q.row<const float>(0);
  convert.outer = tokens;
  convert.inner = heads;
  convert.outer_stride = q.stride;
  convert.inner_stride = shape.qk_head_dim();
  convert.cols = shape.qk_nope_head_dim;
  convert.padded_cols = nope_cols;
  convert.out = x;
  convert.parts = parts_;
  const bool floats =
      shape.qk_head_dim() % 4 == 0 &&
      stream_takes_floats(shape.qk_nope_head_dim, parts_, tokens, q.row<const float>(0), q.stride);
  if (!floats) launch_convert(convert, stream_);
  StreamArgs args;
  const LinearFormat format = weight.kv_b_proj.format;
  PackedShape packed = packed_shape(format, rank, shape.qk_nope_head_dim);
  args.format = format;
  args.group.a = static_cast<const uint8_t*>(weight.kv_b_k_trans.data);
  args.group.scale_a = weight.kv_b_k_trans.global_scale;
  args.group_bytes = static_cast<int64_t>(packed.bytes());
  args.num_groups = static_cast<int>(heads);
  args.rows = static_cast<int>(rank);
  args.tiles = static_cast<int>(packed.tiles);
  args.units = static_cast<int>(packed.units);
  args.x_units = static_cast<int>(packed.x_units);
  args.num_tokens = static_cast<int>(tokens);
  args.x = x;
  if (floats) args.x_float = q.row<const float>(0);
  args.x_parts = parts_;
  args.x_part_stride = tokens * heads * nope_cols;
  args.x_row_stride = floats ? q.stride : heads * nope_cols;
  args.x_group_stride = floats ? shape.qk_head_dim() : nope_cols;
  args.out = absorbed;
  args.out_row_stride = heads * rank;
  args.out_group_stride = rank;
  keep(launch_linear_stream(args, stream_work_tokens(parts_, tokens), stream_),
       "mla_attention: absorption");
  attend_latents(attend, batch);

  // out = W_UV (sum of latents)
  convert.x = latent;
  convert.outer_stride = heads * rank;
  convert.inner_stride = rank;
  convert.cols = rank;
  convert.padded_cols = rank_cols;
  if (!rounded) launch_convert(convert, stream_);
  packed = packed_shape(format, shape.v_head_dim, rank);
  args.group.a = static_cast<const uint8_t*>(weight.kv_b_proj.data);
  args.group_bytes = static_cast<int64_t>(packed.bytes());
  args.rows = static_cast<int>(shape.v_head_dim);
  args.tiles = static_cast<int>(packed.tiles);
  args.units = static_cast<int>(packed.units);
  args.x_units = static_cast<int>(packed.x_units);
  args.x_float = nullptr;
  args.x_part_stride = tokens * heads * rank_cols;
  args.x_row_stride = heads * rank_cols;
  args.x_group_stride = rank_cols;
  args.out = out.row<float>(0);
  args.out_row_stride = out.stride;
  args.out_group_stride = shape.v_head_dim;
  args.out_copy = out_copy.data;
  args.out_copy_row_stride = out_copy.row_stride;
  keep(launch_linear_stream(args, stream_work_tokens(parts_, tokens), stream_),
       "mla_attention: values");
}

}  // namespace nibble::cuda
