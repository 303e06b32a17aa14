#include "nibble/kernels/cuda/cuda_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_device.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/copy_rows.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/cuda_sampler.h"
#include "nibble/kernels/cuda/cuda_step_graphs.h"
#include "nibble/kernels/cuda/expand.h"
#include "nibble/kernels/cuda/gemm_nvfp4.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/route.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble {
namespace cuda {
namespace {

constexpr int64_t kExpandedValues = int64_t{144} << 20;  // at a time

// All but the activations.
StreamArgs stream_args(const LinearWeight& weight, int64_t tokens, const MatrixView& out) {
  const PackedShape shape = packed_shape(weight.format, weight.rows, weight.cols);
  StreamArgs args;
  args.format = weight.format;
  args.group.a = static_cast<const uint8_t*>(weight.data);
  args.group.scale_a = weight.global_scale;
  args.rows = static_cast<int>(weight.rows);
  args.tiles = static_cast<int>(shape.tiles);
  args.units = static_cast<int>(shape.units);
  args.x_units = static_cast<int>(shape.x_units);
  args.num_tokens = static_cast<int>(tokens);
  args.out = out.row<float>(0);
  args.out_row_stride = out.stride;
  return args;
}

}  // namespace

CudaKernels::CudaKernels(std::unique_ptr<Device> device, const CudaOptions& options)
    : device_(std::move(device)),
      copies_(bf16_copies(*device_)),
      stream_(cuda_stream(*device_)),
      name_(device_->name()),
      parts_(options.activation_parts),
      batch_invariant_(options.batch_invariant),
      fixed_expert_order_(options.batch_invariant || options.fixed_expert_order),
      gemm_runs_(cuda_level() / 10 == 9 && gemm_nvfp4_runs_here()),
      cublas_lt_(CublasLt::find()),
      pack_pool_(std::make_unique<PackPool>(*device_)),
      x_scratch_(*device_),
      act_scratch_(*device_),
      plan_scratch_(*device_),
      local_scratch_(*device_),
      expert_scratch_(*device_),
      logits_scratch_(*device_),
      gate_scratch_(*device_),
      code_scratch_(*device_),
      absorbed_scratch_(*device_),
      latent_scratch_(*device_),
      merge_scratch_(*device_),
      expand_scratch_(*device_),
      token_ids_(*device_),
      positions_(*device_),
      entries_(*device_),
      views_(*device_),
      tables_(*device_),
      row_copies_(*device_) {
  // For comparisons; the bits are the same.
  const char* const wanted = std::getenv("NIBBLE_CUDA_BF16_COPIES");
  copies_.set_enabled(parts_ == 1 && (wanted == nullptr || std::string_view(wanted) != "0"));
  // Without it, routing takes its other way.
  const std::vector<uint32_t> zeros(kMaxRouteFewTokens);
  if (auto buffer = device_->allocate(zeros.size() * sizeof(uint32_t))) {
    if (device_->copy_to_device(buffer->data(), std::as_bytes(std::span(zeros)))) {
      arrivals_ = *std::move(buffer);
    }
  }
}

CudaKernels::~CudaKernels() = default;

void CudaKernels::keep(cudaError_t code, std::string_view operation) {
  if (code == cudaSuccess) return;
  keep_cuda_error(*device_, {ErrorCode::kUnavailable,
                             fmt::format("{}: {} ({})", operation, cudaGetErrorString(code),
                                         cudaGetErrorName(code))});
}

Bf16Copy CudaKernels::writes_copied(const MatrixView& out, int parts) {
  return copies_.make(out.row<const float>(0), out.rows, out.cols, out.stride, parts);
}

void CudaKernels::writes(const MatrixView& out) {
  copies_.forget(out.row<const float>(0), out.rows, out.cols, out.stride);
}

void CudaKernels::embed(const MatrixView& table, std::span<const int32_t> token_ids,
                        const MatrixView& out) {
  if (out.rows == 0) return;
  for (const int32_t id : token_ids) NIBBLE_CHECK(id >= 0 && id < table.rows);
  embed_part(table, 0, token_ids, out);
}

void CudaKernels::embed_part(const MatrixView& table, int64_t first_id,
                             std::span<const int32_t> token_ids, const MatrixView& out) {
  if (out.rows == 0) return;
  NIBBLE_CHECK(table.cols == out.cols && static_cast<int64_t>(token_ids.size()) == out.rows);
  const int32_t* const ids = token_ids_.put(token_ids);
  if (ids == nullptr) return;
  writes(out);
  launch_embed(table, first_id, ids, out, stream_);
  keep(cudaGetLastError(), "embed");
}

void CudaKernels::rms_norm(const MatrixView& x, const float* weight, float epsilon,
                           const MatrixView& out) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(x.rows == out.rows && x.cols == out.cols);
  launch_rms_norm(x, weight, epsilon, out, writes_copied(out), stream_);
  keep(cudaGetLastError(), "rms_norm");
}

void CudaKernels::add(const MatrixView& x, const MatrixView& y) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(x.rows == y.rows && x.cols == y.cols);
  writes(x);
  launch_add(x, y, stream_);
  keep(cudaGetLastError(), "add");
}

void CudaKernels::add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight,
                               float epsilon, const MatrixView& out) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(x.rows == y.rows && x.cols == y.cols);
  NIBBLE_CHECK(x.rows == out.rows && x.cols == out.cols && x.data != out.data);
  static_assert(kRoutedAsTheyAre == kMaxRouteFewTokens);
  writes(x);
  launch_add_rms_norm(x, y, weight, epsilon, out, writes_copied(out, norm_copy_parts(x.rows)),
                      stream_);
  keep(cudaGetLastError(), "add_rms_norm");
}

void CudaKernels::copy_rows(std::span<const RowCopy> rows, int64_t cols) {
  if (rows.empty()) return;
  const RowCopy* const copies = row_copies_.put(rows);
  if (copies == nullptr) return;
  make_copies_void();
  keep(launch_copy_rows(copies, static_cast<int64_t>(rows.size()), cols, stream_), "copy_rows");
}

void CudaKernels::copy_matrix(const MatrixView& from, const MatrixView& to) {
  if (from.rows == 0) return;
  NIBBLE_CHECK(from.rows == to.rows && from.cols == to.cols);
  writes(to);
  const auto bytes = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
  keep(cudaMemcpy2DAsync(to.data, bytes(to.stride), from.data, bytes(from.stride), bytes(from.cols),
                         static_cast<size_t>(from.rows), cudaMemcpyDeviceToDevice, stream_),
       "copy_matrix");
}

Result<std::unique_ptr<DeviceSampler>> CudaKernels::make_sampler(int64_t vocab_size) {
  return make_cuda_sampler(*device_, vocab_size);
}

std::unique_ptr<StepGraphs> CudaKernels::make_step_graphs() { return make_cuda_step_graphs(*this); }

bool CudaKernels::stage(std::span<const int32_t> token_ids, const AttentionBatch& batch,
                        const KvCacheView& cache) {
  AttendArgs attend;
  return token_ids_.put(token_ids) != nullptr && upload_positions(batch) != nullptr &&
         upload_entries(batch, cache) != nullptr && upload_views(batch, cache, attend);
}

CudaKernels::Bf16Rows CudaKernels::convert(const MatrixView& x, int parts, Scratch& scratch) {
  const Bf16Copy copy = copies_.find(x.row<const float>(0), x.rows, x.cols, x.stride, parts);
  if (copy.data != nullptr) return {copy.data, copy.row_stride, copy.part_stride};
  ConvertArgs args;
  args.x = x.row<const float>(0);
  args.outer = x.rows;
  args.outer_stride = x.stride;
  args.cols = x.cols;
  args.padded_cols = ceil_div(x.cols, kUnitCols) * kUnitCols;
  args.parts = parts;
  args.out = scratch.get<uint16_t>(parts * x.rows * args.padded_cols);
  if (args.out == nullptr) return {};
  launch_convert(args, stream_);
  keep(cudaGetLastError(), "conversion to BF16");
  return {args.out, args.padded_cols, x.rows * args.padded_cols};
}

bool CudaKernels::give_rows(const MatrixView& x, int parts, StreamArgs& args) {
  const auto* const values = x.row<const float>(0);
  args.x_parts = parts;
  const bool has_copy = copies_.find(values, x.rows, x.cols, x.stride, parts).data != nullptr;
  if (!has_copy && stream_takes_floats(x.cols, parts, x.rows, values, x.stride)) {
    args.x_float = values;
    args.x_row_stride = x.stride;
    return true;
  }
  const Bf16Rows rows = convert(x, parts, x_scratch_);
  args.x = rows.data;
  args.x_part_stride = rows.part_stride;
  args.x_row_stride = rows.row_stride;
  return rows.data != nullptr;
}

void CudaKernels::linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows);
  writes(out);
  if (weight.activation == ActivationFormat::kNvfp4) {
    NIBBLE_CHECK(weight.format == LinearFormat::kNvfp4);
    if (w4a4_on_tensor_cores()) return linear_w4a4_tensor(x, weight, out);
    linear_w4a4(x, weight, out);
  } else {
    linear_parts(x, weight, out, parts_);
  }
}

void CudaKernels::linear_two(const MatrixView& x, const LinearWeight& first,
                             const MatrixView& first_out, const LinearWeight& second,
                             const MatrixView& second_out) {
  const bool as_one = first.format == second.format && first.format != LinearFormat::kNvfp4 &&
                      first.cols == second.cols && !takes_many(first, x.rows);
  if (!as_one || x.rows == 0) return Kernels::linear_two(x, first, first_out, second, second_out);
  NIBBLE_CHECK(x.cols == first.cols && first_out.cols == first.rows && x.rows == first_out.rows);
  NIBBLE_CHECK(second_out.cols == second.rows && x.rows == second_out.rows);
  writes(first_out);
  writes(second_out);
  linear_parts(x, first, first_out, parts_, &second, second_out);
}

void CudaKernels::linear_parts(const MatrixView& x, const LinearWeight& weight,
                               const MatrixView& out, int parts, const LinearWeight* second,
                               const MatrixView& second_out) {
  if (parts == 1 && takes_many(weight, x.rows)) {
    const Bf16Rows rows = convert(x, parts, x_scratch_);
    if (rows.data != nullptr) linear_many(rows, x.rows, weight, out);
    return;
  }
  StreamArgs args = stream_args(weight, x.rows, out);
  if (!give_rows(x, parts, args)) return;
  if (second != nullptr) {
    args.second.a = static_cast<const uint8_t*>(second->data);
    args.second.scale_a = second->global_scale;
    args.second_tile = args.tiles;
    args.tiles += static_cast<int>(packed_shape(second->format, second->rows, second->cols).tiles);
    args.second_rows = static_cast<int>(second->rows);
    args.second_out = second_out.row<float>(0);
    args.second_out_row_stride = second_out.stride;
  }
  keep(launch_linear_stream(args, stream_work_tokens(parts, x.rows), stream_), "linear");
}

void CudaKernels::linear_rows(const Bf16Rows& rows, int64_t tokens, const LinearWeight& weight,
                              const MatrixView& out) {
  StreamArgs args = stream_args(weight, tokens, out);
  args.x = rows.data;
  args.x_part_stride = rows.part_stride;
  args.x_row_stride = rows.row_stride;
  keep(launch_linear_stream(args, stream_work_tokens(1, tokens), stream_), "linear");
}

bool CudaKernels::takes_many(const LinearWeight& weight, int64_t tokens) const {
  return tokens >= kManyTokens && !batch_invariant_ && parts_ == 1 && cublas_lt_ != nullptr &&
         expands_exactly(weight.format) && weight.activation == ActivationFormat::kUnquantized;
}

// Some rows of the weight at a time, so that their BF16 form stays small and is read back from
// where it was just written.
void CudaKernels::linear_many(const Bf16Rows& x, int64_t tokens, const LinearWeight& weight,
                              const MatrixView& out) {
  const PackedShape shape = packed_shape(weight.format, weight.rows, weight.cols);
  const int64_t cols = shape.units * kUnitCols;
  const int64_t step = std::max<int64_t>(1, kExpandedValues / (cols * kTileRows));
  auto* const expanded =
      expand_scratch_.get<uint16_t>(std::min(step, shape.tiles) * kTileRows * cols);
  if (expanded == nullptr) return;
  for (int64_t tile = 0; tile < shape.tiles; tile += step) {
    const int64_t tiles = std::min(step, shape.tiles - tile);
    keep(launch_expand(weight, tile, tiles, expanded, stream_), "expansion of weights");
    const int64_t first = tile * kTileRows;
    const int64_t rows = std::min(tiles * kTileRows, weight.rows - first);
    if (!cublas_lt_->multiply(expanded, rows, x.data, tokens, cols, expanded_scale(weight),
                              out.row<float>(0) + first, out.stride, stream_)) {
      keep(cudaErrorUnknown, "cublasLtMatmul");
    }
  }
}

W4a4Activations CudaKernels::quantize(const float* x, int64_t rows, int64_t cols, int64_t stride,
                                      float input_scale) {
  W4a4Activations a;
  a.padded_cols = ceil_div(cols, kUnitCols) * kUnitCols;
  const int64_t codes = rows * a.padded_cols;
  const int64_t scales = codes / 16 * int64_t{4};
  auto* const memory = code_scratch_.get<uint8_t>(codes + scales + rows * 4);
  if (memory == nullptr) return {};
  a.codes = reinterpret_cast<int8_t*>(memory);
  a.scales = reinterpret_cast<int32_t*>(memory + codes);
  a.finite = reinterpret_cast<int32_t*>(memory + codes + scales);
  launch_w4a4_quantize(x, rows, cols, stride, input_scale, a, stream_);
  keep(cudaGetLastError(), "quantization of activations");
  return a;
}

void CudaKernels::linear_w4a4(const MatrixView& x, const LinearWeight& weight,
                              const MatrixView& out) {
  W4a4Args args;
  args.x = quantize(x.row<const float>(0), x.rows, x.cols, x.stride, weight.input_scale);
  if (args.x.codes == nullptr) return;
  args.weight = {static_cast<const uint8_t*>(weight.data),
                 weight.input_scale * weight.global_scale};
  args.slots = x.rows;
  args.out_rows = weight.rows;
  args.cols = weight.cols;
  args.out = out.row<float>(0);
  args.out_stride = out.stride;
  launch_linear_w4a4(args, stream_);
  keep(cudaGetLastError(), "linear with NVFP4 activations");
}

void CudaKernels::route(const MatrixView& x, const LinearWeight& gate, const float* bias,
                        const RouterShape& shape, int32_t* expert_ids, float* weights) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(gate.rows == shape.n_routed_experts);
  if (!batch_invariant_ && arrivals_.data() != nullptr && route_few_takes(gate, x, shape)) {
    RouteFewArgs args;
    args.units = packed_shape(gate.format, gate.rows, gate.cols).units;
    args.parts = logits_scratch_.get<float>(route_few_floats(x.rows, args.units, shape));
    if (args.parts == nullptr) return;
    args.gate = static_cast<const uint8_t*>(gate.data);
    args.x = x.row<const float>(0);
    args.x_stride = x.stride;
    args.bias = bias;
    args.shape = shape;
    args.arrivals = arrivals_.as<unsigned>();
    args.expert_ids = expert_ids;
    args.weights = weights;
    keep(launch_route_few(args, x.rows, stream_), "route");
    return;
  }
  auto* const logits = logits_scratch_.get<float>(x.rows * gate.rows);
  if (logits == nullptr) return;
  // A choice of experts must not hang on the rounding of activations: all 24 bits of them.
  linear_parts(x, gate, MatrixView{logits, DType::kF32, x.rows, gate.rows, gate.rows}, 3);
  launch_route(logits, x.rows, bias, shape, expert_ids, weights, stream_);
  keep(cudaGetLastError(), "route");
}

}  // namespace cuda

Result<std::unique_ptr<Kernels>> make_cuda_kernels(const CudaOptions& options) {
  NIBBLE_CHECK(options.activation_parts >= 1 && options.activation_parts <= 3);
  auto device = NIBBLE_TRY(make_cuda_device(options.device));
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, options.device) !=
          cudaSuccess) {
    return unavailable("the GPU does not say its compute capability");
  }
  if (!cuda::has_code_for_gpu()) {
    return unsupported(fmt::format(
        "{} has compute capability {}.{}, and this build has no code for it; configure with "
        "-DCMAKE_CUDA_ARCHITECTURES={}{}-real (8.0 and later; 9.0, the H100 and H200, is what has "
        "been run and is fast), or use --backend cpu",
        device->name(), major, minor, major, minor));
  }
  return std::make_unique<cuda::CudaKernels>(std::move(device), options);
}

}  // namespace nibble
