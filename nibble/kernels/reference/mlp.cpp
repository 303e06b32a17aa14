#include <cmath>
#include <vector>

#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {

float swiglu(float gate, float up) {
  const double g = gate;
  return static_cast<float>(g / (1 + std::exp(-g)) * static_cast<double>(up));
}

void ReferenceKernels::mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) {
  const int64_t intermediate = weight.gate_proj.rows;
  std::vector<float> gate(static_cast<size_t>(x.rows * intermediate));
  std::vector<float> up(gate.size());
  const MatrixView gate_view{gate.data(), DType::kF32, x.rows, intermediate, intermediate};
  const MatrixView up_view{up.data(), DType::kF32, x.rows, intermediate, intermediate};
  linear(x, weight.gate_proj, gate_view);
  linear(x, weight.up_proj, up_view);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = swiglu(gate[i], up[i]);
  linear(gate_view, weight.down_proj, out);
}

}  // namespace nibble
