// Attention by the definition and by the cuda backend with activations in BF16, of one weight.
#pragma once

#include <memory>
#include <vector>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/cuda/host_side_cuda.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {

class MlaPair {
 public:
  // R1's widths.
  MlaPair(int64_t heads, uint32_t seed)
      : shape(real_mla_shape(heads)),
        kv_b_proj_(random_kv_b_proj(LinearFormat::kBf16, shape, seed)),
        plain_(pack_mla_up_weight(reference_, kv_b_proj_, shape)),
        packed_(pack_mla_up_weight(*cuda_, kv_b_proj_, shape)) {}

  TestMatrix queries(int64_t tokens, uint32_t seed, float deviation = 1) const {
    return TestMatrix::random(tokens, shape.num_heads * shape.qk_head_dim(), seed, deviation);
  }
  TestMatrix want(TestMatrix& q, const std::vector<AttentionSegment>& segments, TestCache& cache) {
    return attend(reference_, plain_.weight, q, segments, cache);
  }
  TestMatrix got(TestMatrix& q, const std::vector<AttentionSegment>& segments, TestCache& cache) {
    return attend(*cuda_, packed_.weight, q, segments, cache);
  }

  const MlaShape shape;

 private:
  TestMatrix attend(Kernels& kernels, const MlaUpWeight& weight, TestMatrix& q,
                    const std::vector<AttentionSegment>& segments, TestCache& cache) const {
    TestMatrix out(q.rows(), shape.num_heads * shape.v_head_dim);
    kernels.mla_attention(q.view(), weight, shape, {q.rows(), segments}, cache.view(), out.view());
    return out;
  }

  ReferenceKernels reference_;
  std::unique_ptr<Kernels> cuda_ = make_host_side_cuda(1);
  TestWeight kv_b_proj_;
  PackedMlaUp plain_;
  PackedMlaUp packed_;
};

}  // namespace nibble
