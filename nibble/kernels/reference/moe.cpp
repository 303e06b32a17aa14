#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"

namespace nibble {

void ReferenceKernels::moe(const MatrixView& x, std::span<const MlpWeight> experts,
                           const MlpWeight* shared, const RouterShape& shape,
                           const int32_t* expert_ids, const float* weights, const MatrixView& out) {
  NIBBLE_CHECK(static_cast<int>(experts.size()) == shape.local_experts());
  std::vector<float> result(static_cast<size_t>(x.cols));
  const MatrixView result_view{result.data(), DType::kF32, 1, x.cols, x.cols};
  for (int64_t t = 0; t < x.rows; ++t) {
    const MatrixView token = x.slice_rows(t, 1);
    float* sum = out.row<float>(t);
    for (int64_t i = 0; i < x.cols; ++i) sum[i] = 0;
    for (int j = 0; j < shape.num_experts_per_tok; ++j) {
      const int64_t slot = t * shape.num_experts_per_tok + j;
      const int expert = shape.local_expert(expert_ids[slot]);
      if (expert < 0) continue;
      mlp(token, experts[static_cast<size_t>(expert)], result_view);
      for (int64_t i = 0; i < x.cols; ++i) sum[i] += weights[slot] * result[static_cast<size_t>(i)];
    }
    if (shared != nullptr) {
      mlp(token, *shared, result_view);
      for (int64_t i = 0; i < x.cols; ++i) sum[i] += result[static_cast<size_t>(i)];
    }
  }
}

}  // namespace nibble
