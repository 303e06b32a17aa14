// W4A4 on tensor cores, as on Blackwell: activations are rounded to NVFP4 and sums are binary32.
//
// Many tokens of a dense layer go to cuBLASLt's block-scaled product, which takes both sides as
// they are. All others, experts, and what cuBLASLt refuses go to the kernels of W4A16: both sides'
// values are BF16 values (E2M1 times E4M3 has 6 bits), so that the products are the same and only
// the order of sums differs. NEVER RUN: cuBLASLt's product, which needs Blackwell. The rest is
// tested with NIBBLE_CUDA_LEVEL=100 on an H200.
#include <fmt/format.h>

#include <utility>

#include "nibble/base/log.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/linear_ring.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble::cuda {
namespace {

LinearWeight without_activations(const LinearWeight& weight) {
  LinearWeight plain = weight;
  plain.activation = ActivationFormat::kUnquantized;
  plain.global_scale = weight.input_scale * weight.global_scale;
  return plain;
}

bool is_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) != cudaSuccess ||
         status != cudaStreamCaptureStatusNone;
}

void set_weight_shape(StreamArgs& args, const LinearWeight& weight) {
  const PackedShape shape = packed_shape(LinearFormat::kNvfp4, weight.rows, weight.cols);
  args.format = LinearFormat::kNvfp4;
  args.rows = static_cast<int>(weight.rows);
  args.tiles = static_cast<int>(shape.tiles);
  args.units = static_cast<int>(shape.units);
  args.x_units = static_cast<int>(shape.x_units);
}

}  // namespace

// With more than one part an activation is asked for exactly: linear_w4a4.cu's integers.
bool CudaKernels::w4a4_on_tensor_cores() const { return parts_ == 1 && has_fp4_tensor_cores(); }

CudaKernels::Bf16Rows CudaKernels::round_nvfp4(const float* x, int64_t rows, int64_t cols,
                                               int64_t stride, float input_scale,
                                               Scratch& scratch) {
  const int64_t padded = ceil_div(cols, kUnitCols) * kUnitCols;
  auto* const out = scratch.get<uint16_t>(rows * padded);
  if (out == nullptr) return {};
  keep(launch_nvfp4_round(x, rows, cols, stride, input_scale, padded, out, stream_),
       "rounding of activations to NVFP4");
  return {out, padded, rows * padded};
}

void CudaKernels::linear_w4a4_tensor(const MatrixView& x, const LinearWeight& weight,
                                     const MatrixView& out) {
  const LinearWeight plain = without_activations(weight);
  const bool many = takes_many(plain, x.rows);
  if (many && linear_fp4(x, weight, out)) return;
  const Bf16Rows rows =
      round_nvfp4(x.row<const float>(0), x.rows, x.cols, x.stride, weight.input_scale, x_scratch_);
  if (rows.data == nullptr) return;
  if (many) {
    linear_many(rows, x.rows, plain, out);
  } else {
    linear_rows(rows, x.rows, plain, out);
  }
}

// Made at a weight's first product of many tokens, which a model's profiling pass brings, so that
// the memory is known when the cache's is chosen. Null: there is none.
const Fp4Matrix* CudaKernels::fp4_weight(const LinearWeight& weight) {
  const int64_t cols = ceil_div(weight.cols, kUnitCols) * kUnitCols;
  const std::lock_guard lock(fp4_mutex_);
  if (fp4_refused_.contains(weight.data)) return nullptr;
  const auto found = fp4_weights_.find(weight.data);
  if (found != fp4_weights_.end()) {
    const Fp4Matrix& matrix = found->second.matrix;
    if (matrix.rows == weight.rows && matrix.cols == cols) return &matrix;
    fp4_weights_.erase(found);
  }
  if (is_recording(stream_)) return nullptr;
  const int64_t bytes = Fp4Matrix::bytes(weight.rows, cols);
  auto buffer = device_->allocate_for(MemoryUse::kWeights, static_cast<size_t>(bytes));
  if (!buffer) return nullptr;
  KeptFp4 kept;
  kept.buffer = *std::move(buffer);
  kept.matrix = Fp4Matrix::at(kept.buffer.as<uint8_t>(), weight.rows, cols);
  if (const cudaError_t code = launch_fp4_weight(weight.data, kept.matrix, stream_);
      code != cudaSuccess) {
    keep(code, "a weight for cuBLASLt's NVFP4 product");
    return nullptr;
  }
  return &(fp4_weights_[weight.data] = std::move(kept)).matrix;
}

// False where the product is left to others.
bool CudaKernels::linear_fp4(const MatrixView& x, const LinearWeight& weight,
                             const MatrixView& out) {
  const Fp4Matrix* const w = fp4_weight(weight);
  if (w == nullptr) return false;
  const int64_t side = Fp4Matrix::bytes(x.rows, w->cols);
  const int64_t flags = ceil_div(x.rows, 64) * 256;  // bytes
  auto* const memory = code_scratch_.get<uint8_t>(side + flags);
  auto* const workspace = expand_scratch_.get<uint8_t>(CublasLt::kFp4Workspace);
  if (memory == nullptr || workspace == nullptr) return true;  // the error is kept
  const Fp4Matrix rows = Fp4Matrix::at(memory + flags, x.rows, w->cols);
  auto* const finite = reinterpret_cast<int32_t*>(memory);
  keep(launch_fp4_quantize(x.row<const float>(0), x.cols, x.stride, weight.input_scale, rows,
                           finite, stream_),
       "quantization of activations");
  switch (cublas_lt_->multiply_fp4(*w, rows, weight.input_scale * weight.global_scale,
                                   out.row<float>(0), out.stride, workspace, stream_)) {
    case CublasLt::Fp4Result::kDone:
      keep(launch_spoil_rows(finite, x.rows, weight.rows, out.row<float>(0), out.stride, stream_),
           "linear with NVFP4 activations");
      return true;
    case CublasLt::Fp4Result::kFailed:
      keep(cudaErrorUnknown, "cublasLtMatmul with NVFP4 on both sides");
      return true;
    case CublasLt::Fp4Result::kRefused:
      break;
  }
  if (!told_of_refusal_) {
    log_warning(fmt::format(
        "cuBLASLt has no NVFP4 product of [{}, {}] by {} tokens on {}: W4A4 of this matrix, and of "
        "others that it refuses, takes products of BF16 with the same values, which are slower",
        weight.rows, weight.cols, x.rows, name_));
    told_of_refusal_ = true;
  }
  const std::lock_guard lock(fp4_mutex_);
  // What was made for it stays: a recorded step of another number of tokens may read it.
  fp4_refused_.insert(weight.data);
  return false;
}

// gate and up apart, as down's rounding is to see their product before any other.
void CudaKernels::moe_w4a4_tensor(const MatrixView& x, const ExpertTable& table, int cls,
                                  const MlpWeight& like, const RouterShape& shape,
                                  const int32_t* expert_ids, float* expert_rows, bool fixed_order) {
  const int64_t intermediate = like.gate_proj.rows;
  StreamedPlan plan;
  if (!plan_streamed(x.rows, table, cls, shape, expert_ids, plan)) return;
  // A slot that this class does not serve keeps what was there: it is rounded, and read by nobody.
  auto* const gate = gate_scratch_.get<float>(2 * plan.all_slots * intermediate);
  if (gate == nullptr) return;
  float* const up = gate + plan.all_slots * intermediate;
  Bf16Rows rows = round_nvfp4(x.row<const float>(0), x.rows, x.cols, x.stride,
                              like.gate_proj.input_scale, x_scratch_);
  if (rows.data == nullptr) return;
  StreamArgs args = plan.args;
  set_weight_shape(args, like.gate_proj);
  args.fixed_order = fixed_order;
  args.groups = table.gate_up;
  args.x = rows.data;
  args.x_row_stride = rows.row_stride;
  args.out = gate;
  args.out_row_stride = intermediate;
  keep(launch_linear_stream(args, plan.work_tokens, stream_), "moe: gate");
  if (like.up_proj.input_scale != like.gate_proj.input_scale) {
    rows = round_nvfp4(x.row<const float>(0), x.rows, x.cols, x.stride, like.up_proj.input_scale,
                       x_scratch_);
    if (rows.data == nullptr) return;
  } else {
    args.work_is_older = ring_takes(args);
  }
  args.groups = table.up;
  args.x = rows.data;
  args.out = up;
  keep(launch_linear_stream(args, plan.work_tokens, stream_), "moe: up");
  launch_swiglu(gate, up, plan.all_slots * intermediate, gate, stream_);
  rows = round_nvfp4(gate, plan.all_slots, intermediate, intermediate, like.down_proj.input_scale,
                     act_scratch_);
  if (rows.data == nullptr) return;
  args.work_is_older = false;
  set_weight_shape(args, like.down_proj);
  args.groups = table.down;
  args.x_divisor = 0;
  args.x = rows.data;
  args.x_row_stride = rows.row_stride;
  args.out = expert_rows;
  args.out_row_stride = x.cols;
  keep(launch_linear_stream(args, plan.work_tokens, stream_), "moe: down with NVFP4 activations");
}

}  // namespace nibble::cuda
