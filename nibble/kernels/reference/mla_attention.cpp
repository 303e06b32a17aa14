// Both forms of MLA, as the paper writes them; spec kernels section 1.3.
#include <algorithm>
#include <cmath>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/dequantize.h"
#include "nibble/kernels/reference/dot.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {
namespace {

using Row = std::vector<float>;

// scores -> probabilities, in binary64.
void softmax(std::vector<double>& scores) {
  const double peak = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) {
    s = std::exp(s - peak);
    sum += s;
  }
  for (double& s : scores) s /= sum;
}

// One head's rows of kv_b_proj: qk_nope_head_dim of W_UK, then v_head_dim of W_UV.
std::vector<Row> head_rows(const LinearWeight& kv_b_proj, const MlaShape& shape, int64_t head) {
  const int64_t count = shape.qk_nope_head_dim + shape.v_head_dim;
  std::vector<Row> rows(static_cast<size_t>(count), Row(static_cast<size_t>(kv_b_proj.cols)));
  for (int64_t i = 0; i < count; ++i) {
    dequantize_row(kv_b_proj, head * count + i, rows[static_cast<size_t>(i)].data());
  }
  return rows;
}

// One head of one segment. entries [context][entry_size]: the cache as binary32.
class Head {
 public:
  Head(const MlaShape& shape, std::vector<Row> up, const std::vector<Row>& entries)
      : shape_(shape), up_(std::move(up)), entries_(entries) {}

  // kExpanded: k = [W_UK c; r] and v = W_UV c for every cached token.
  void expand() {
    for (const Row& entry : entries_) {
      Row expanded(up_.size());
      for (size_t i = 0; i < up_.size(); ++i) {
        expanded[i] = static_cast<float>(dot(up_[i].data(), entry.data(), shape_.kv_lora_rank));
      }
      expanded_.push_back(std::move(expanded));
    }
  }

  void attend_expanded(const float* q, int64_t context, float* out) const {
    std::vector<double> p(static_cast<size_t>(context));
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = score(dot(q, expanded_[i].data(), shape_.qk_nope_head_dim), q, entries_[i]);
    }
    softmax(p);
    for (int64_t v = 0; v < shape_.v_head_dim; ++v) {
      double sum = 0;
      for (size_t i = 0; i < p.size(); ++i) {
        sum += p[i] *
               static_cast<double>(expanded_[i][static_cast<size_t>(shape_.qk_nope_head_dim + v)]);
      }
      out[v] = static_cast<float>(sum);
    }
  }

  // kAbsorbed: q' = W_UK^T q_nope meets the latents themselves, and W_UV comes last.
  void attend_absorbed(const float* q, int64_t context, float* out) const {
    const auto rank = static_cast<size_t>(shape_.kv_lora_rank);
    Row absorbed(rank);
    for (size_t c = 0; c < rank; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < shape_.qk_nope_head_dim; ++d) {
        sum += static_cast<double>(q[d]) * static_cast<double>(up_[static_cast<size_t>(d)][c]);
      }
      absorbed[c] = static_cast<float>(sum);
    }
    std::vector<double> p(static_cast<size_t>(context));
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = score(dot(absorbed.data(), entries_[i].data(), shape_.kv_lora_rank), q, entries_[i]);
    }
    softmax(p);
    Row latent(rank);
    for (size_t c = 0; c < rank; ++c) {
      double sum = 0;
      for (size_t i = 0; i < p.size(); ++i) sum += p[i] * static_cast<double>(entries_[i][c]);
      latent[c] = static_cast<float>(sum);
    }
    for (int64_t v = 0; v < shape_.v_head_dim; ++v) {
      const Row& row = up_[static_cast<size_t>(shape_.qk_nope_head_dim + v)];
      out[v] = static_cast<float>(dot(row.data(), latent.data(), shape_.kv_lora_rank));
    }
  }

 private:
  double score(double nope, const float* q, const Row& entry) const {
    const double rope = dot(q + shape_.qk_nope_head_dim, entry.data() + shape_.kv_lora_rank,
                            shape_.qk_rope_head_dim);
    return static_cast<double>(shape_.softmax_scale) * (nope + rope);
  }

  const MlaShape& shape_;
  std::vector<Row> up_;
  const std::vector<Row>& entries_;
  std::vector<Row> expanded_;
};

}  // namespace

void ReferenceKernels::mla_attention(const MatrixView& q, const MlaUpWeight& weight,
                                     const MlaShape& shape, const AttentionBatch& batch,
                                     const KvCacheView& cache, const MatrixView& out) {
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(out.cols == shape.num_heads * shape.v_head_dim);
  for (const AttentionSegment& segment : batch.segments) {
    const int64_t context = segment.first_position + segment.num_tokens;
    std::vector<Row> entries(static_cast<size_t>(context),
                             Row(static_cast<size_t>(shape.entry_size())));
    for (int64_t p = 0; p < context; ++p) {
      read_cache_entry(cache, cache.entry_offset(segment.block_table, segment.slot(p)),
                       entries[static_cast<size_t>(p)].data());
    }
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      Head head(shape, head_rows(weight.kv_b_proj, shape, h), entries);
      if (segment.form == MlaForm::kExpanded) head.expand();
      for (int64_t i = 0; i < segment.num_tokens; ++i) {
        const int64_t t = segment.first_token + i;
        const float* query = q.row<float>(t) + h * shape.qk_head_dim();
        float* result = out.row<float>(t) + h * shape.v_head_dim;
        const int64_t visible = segment.first_position + i + 1;
        if (segment.form == MlaForm::kExpanded) {
          head.attend_expanded(query, visible, result);
        } else {
          head.attend_absorbed(query, visible, result);
        }
      }
    }
  }
}

}  // namespace nibble
