// Dense and expert MLPs. gate, up and SwiGLU are one launch, down another; which experts run and on
// which rows is decided on the device (moe_plan.h).
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/cuda_staged_moe.h"
#include "nibble/kernels/cuda/gemm_nvfp4.h"
#include "nibble/kernels/cuda/linear_ring.h"
#include "nibble/kernels/cuda/moe_plan.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble::cuda {
namespace {

const uint8_t* bytes_of(const LinearWeight& weight) {
  return static_cast<const uint8_t*>(weight.data);
}

bool is_w4a4(const LinearWeight& weight) { return weight.activation == ActivationFormat::kNvfp4; }

// At a time, so that what lies between the operations stays below 2 GB for R1.
constexpr int64_t kMoeTokens = 4096;

// The classes of experts that one launch can serve: a weight format for all three matrices, or
// W4A4.
constexpr int kW4a4Class = 4;
bool has_one_class(const MlpWeight& mlp) {
  return mlp.gate_proj.format == mlp.up_proj.format &&
         mlp.gate_proj.format == mlp.down_proj.format &&
         is_w4a4(mlp.gate_proj) == is_w4a4(mlp.up_proj) &&
         is_w4a4(mlp.gate_proj) == is_w4a4(mlp.down_proj);
}
int class_of(const MlpWeight& mlp) {
  return is_w4a4(mlp.gate_proj) ? kW4a4Class : static_cast<int>(mlp.gate_proj.format);
}

// One launch for gate and up?
bool fusable(const MlpWeight& mlp) {
  return mlp.gate_proj.format == mlp.up_proj.format && !is_w4a4(mlp.gate_proj) &&
         !is_w4a4(mlp.up_proj) && !is_w4a4(mlp.down_proj);
}

bool same_shape(const LinearWeight& a, const LinearWeight& b) {
  return a.rows == b.rows && a.cols == b.cols;
}

bool same_weight(const LinearWeight& a, const LinearWeight& b) {
  return a.data == b.data && a.format == b.format && a.activation == b.activation &&
         same_shape(a, b) && a.global_scale == b.global_scale && a.input_scale == b.input_scale;
}

bool same_mlp(const MlpWeight& a, const MlpWeight& b) {
  return same_weight(a.gate_proj, b.gate_proj) && same_weight(a.up_proj, b.up_proj) &&
         same_weight(a.down_proj, b.down_proj);
}

W4a4Weight w4a4_of(const LinearWeight& weight) {
  if (!is_w4a4(weight)) return {};
  return {bytes_of(weight), weight.input_scale * weight.global_scale};
}

void set_shape(StreamArgs& args, const LinearWeight& weight) {
  const PackedShape shape = packed_shape(weight.format, weight.rows, weight.cols);
  args.format = weight.format;
  args.rows = static_cast<int>(weight.rows);
  args.tiles = static_cast<int>(shape.tiles);
  args.units = static_cast<int>(shape.units);
  args.x_units = static_cast<int>(shape.x_units);
}

// What the sums of products are multiplied with.
float scale_of(const LinearWeight& weight) {
  return is_w4a4(weight) ? weight.input_scale * weight.global_scale : weight.global_scale;
}

// Where the parts of a table's bytes lie: groups of gate and up, groups of down, groups of up, the
// three matrices for W4A4, classes.
struct TableLayout {
  size_t count;  // experts + shared

  size_t w4a4() const { return 3 * count * sizeof(StreamGroup); }
  size_t classes() const { return w4a4() + 3 * count * sizeof(W4a4Weight); }
  size_t bytes() const { return classes() + count; }
};

}  // namespace

void CudaKernels::mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) {
  if (x.rows == 0) return;
  const int64_t intermediate = weight.gate_proj.rows;
  NIBBLE_CHECK(weight.up_proj.rows == intermediate && weight.down_proj.cols == intermediate);
  NIBBLE_CHECK(x.cols == weight.gate_proj.cols && out.cols == weight.down_proj.rows);
  if (!fusable(weight) || takes_many(weight.gate_proj, x.rows)) {
    auto* const gate = gate_scratch_.get<float>(2 * x.rows * intermediate);
    if (gate == nullptr) return;
    float* const up = gate + x.rows * intermediate;
    const MatrixView gate_view{gate, DType::kF32, x.rows, intermediate, intermediate};
    linear(x, weight.gate_proj, gate_view);
    linear(x, weight.up_proj, MatrixView{up, DType::kF32, x.rows, intermediate, intermediate});
    swiglu_down(gate, up, x.rows, weight.down_proj, out);
    return;
  }
  writes(out);
  const int64_t act_cols = ceil_div(intermediate, kUnitCols) * kUnitCols;
  auto* const act = act_scratch_.get<uint16_t>(parts_ * x.rows * act_cols);
  StreamArgs args;
  if (act == nullptr || !give_rows(x, parts_, args)) return;
  if (act_cols != intermediate) {
    keep(cudaMemsetAsync(act, 0, static_cast<size_t>(parts_ * x.rows * act_cols) * 2, stream_),
         "mlp");
  }
  const int work_tokens = stream_work_tokens(parts_, x.rows);
  set_shape(args, weight.gate_proj);
  args.group = {bytes_of(weight.gate_proj), bytes_of(weight.up_proj), weight.gate_proj.global_scale,
                weight.up_proj.global_scale};
  args.gate_up = true;
  args.num_tokens = static_cast<int>(x.rows);
  args.act = act;
  args.act_parts = parts_;
  args.act_part_stride = x.rows * act_cols;
  args.act_row_stride = act_cols;
  keep(launch_linear_stream(args, work_tokens, stream_), "mlp: gate and up");

  StreamArgs down;
  set_shape(down, weight.down_proj);
  down.group.a = bytes_of(weight.down_proj);
  down.group.scale_a = weight.down_proj.global_scale;
  down.num_tokens = args.num_tokens;
  down.x = act;
  down.x_parts = parts_;
  down.x_part_stride = args.act_part_stride;
  down.x_row_stride = act_cols;
  down.out = out.row<float>(0);
  down.out_row_stride = out.stride;
  keep(launch_linear_stream(down, work_tokens, stream_), "mlp: down");
}

void CudaKernels::swiglu_down(float* gate, const float* up, int64_t rows, const LinearWeight& down,
                              const MatrixView& out) {
  const int64_t intermediate = down.cols;
  if (parts_ != 1 || is_w4a4(down)) {
    launch_swiglu(gate, up, rows * intermediate, gate, stream_);
    keep(cudaGetLastError(), "mlp");
    return linear(MatrixView{gate, DType::kF32, rows, intermediate, intermediate}, down, out);
  }
  const int64_t act_cols = ceil_div(intermediate, kUnitCols) * kUnitCols;
  auto* const act = act_scratch_.get<uint16_t>(rows * act_cols);
  if (act == nullptr) return;
  launch_swiglu_bf16(gate, up, rows, intermediate, act_cols, act, stream_);
  keep(cudaGetLastError(), "mlp");
  writes(out);
  const Bf16Rows act_rows{act, act_cols, rows * act_cols};
  if (takes_many(down, rows)) return linear_many(act_rows, rows, down, out);
  linear_rows(act_rows, rows, down, out);
}

bool CudaKernels::describe_experts(std::span<const MlpWeight> experts,
                                   std::span<const int32_t> ready, const MlpWeight* shared,
                                   ExpertTable& table, std::vector<std::byte>& bytes) {
  const MlpWeight& like = experts[0];
  const size_t count = experts.size() + (shared != nullptr ? 1 : 0);
  const TableLayout layout{count};
  bytes.assign(layout.bytes(), std::byte{0});
  auto* const groups = reinterpret_cast<StreamGroup*>(bytes.data());
  auto* const w4a4 = reinterpret_cast<W4a4Weight*>(bytes.data() + layout.w4a4());
  auto* const classes = reinterpret_cast<uint8_t*>(bytes.data() + layout.classes());
  std::fill_n(classes, count, uint8_t{0xff});
  table.present.clear();
  table.shared_joins = false;
  table.is_whole = ready.size() == experts.size();
  const auto put = [&](size_t e, const MlpWeight& mlp) {
    const int cls = class_of(mlp);
    classes[e] = static_cast<uint8_t>(cls);
    const auto known = [&](const auto& entry) { return entry.first == cls; };
    if (std::none_of(table.present.begin(), table.present.end(), known)) {
      table.present.emplace_back(cls, mlp);
    }
    groups[e] = {bytes_of(mlp.gate_proj), bytes_of(mlp.up_proj), scale_of(mlp.gate_proj),
                 scale_of(mlp.up_proj)};
    groups[count + e].a = bytes_of(mlp.down_proj);
    groups[count + e].scale_a = scale_of(mlp.down_proj);
    groups[2 * count + e].a = bytes_of(mlp.up_proj);
    groups[2 * count + e].scale_a = scale_of(mlp.up_proj);
    w4a4[e] = w4a4_of(mlp.gate_proj);
    w4a4[count + e] = w4a4_of(mlp.up_proj);
    w4a4[2 * count + e] = w4a4_of(mlp.down_proj);
  };
  for (const int32_t e : ready) {
    const MlpWeight& mlp = experts[static_cast<size_t>(e)];
    NIBBLE_CHECK(same_shape(mlp.gate_proj, like.gate_proj) &&
                 same_shape(mlp.up_proj, like.gate_proj) &&
                 same_shape(mlp.down_proj, like.down_proj));
    if (!has_one_class(mlp)) {
      keep_cuda_error(
          *device_,
          {ErrorCode::kUnsupported,
           fmt::format(
               "expert {} has gate, up and down in different formats; the cuda backend takes "
               "one format an expert, --backend cpu any",
               e)});
      return false;
    }
    put(static_cast<size_t>(e), mlp);
  }
  if (shared == nullptr) return true;
  table.shared_joins = same_shape(shared->gate_proj, like.gate_proj) &&
                       same_shape(shared->down_proj, like.down_proj) && has_one_class(*shared) &&
                       fusable(*shared);
  if (table.shared_joins) put(experts.size(), *shared);
  return true;
}

void CudaKernels::ExpertTable::point_to(const std::byte* bytes, size_t count) {
  const TableLayout layout{count};
  gate_up = reinterpret_cast<const StreamGroup*>(bytes);
  down = gate_up + count;
  up = down + count;
  for (size_t i = 0; i < 3; ++i) {
    w4a4[i] = reinterpret_cast<const W4a4Weight*>(bytes + layout.w4a4()) + i * count;
  }
  classes = reinterpret_cast<const uint8_t*>(bytes + layout.classes());
}

// Made at a layer's first step and found again by the address of its experts; compared each time,
// as an address may come to belong to other weights.
const CudaKernels::ExpertTable* CudaKernels::expert_table(std::span<const MlpWeight> experts,
                                                          const MlpWeight* shared) {
  KeptTable& kept = expert_tables_[experts.data()];
  const size_t count = experts.size() + (shared != nullptr ? 1 : 0);
  if (kept.host.size() == count &&
      std::equal(experts.begin(), experts.end(), kept.host.begin(), same_mlp) &&
      (shared == nullptr || same_mlp(*shared, kept.host.back()))) {
    return &kept.table;
  }
  kept = KeptTable();
  std::vector<int32_t> all(experts.size());
  std::iota(all.begin(), all.end(), 0);
  if (!describe_experts(experts, all, shared, kept.table, table_bytes_)) {
    expert_tables_.erase(experts.data());
    return nullptr;
  }
  auto buffer = device_->allocate(table_bytes_.size());
  Status copied;
  if (buffer) copied = device_->copy_to_device(buffer->data(), table_bytes_);
  if (!buffer || !copied) {
    expert_tables_.erase(experts.data());
    keep(cudaErrorMemoryAllocation, "moe: the table of experts");
    return nullptr;
  }
  kept.buffer = *std::move(buffer);
  kept.table.point_to(kept.buffer.as<const std::byte>(), count);
  kept.host.assign(experts.begin(), experts.end());
  if (shared != nullptr) kept.host.push_back(*shared);
  return &kept.table;
}

bool CudaKernels::plan_streamed(int64_t tokens, const ExpertTable& table, int cls,
                                const RouterShape& shape, const int32_t* expert_ids,
                                StreamedPlan& plan) {
  const int64_t slots = tokens * shape.num_experts_per_tok;
  plan.all_slots = slots + (table.shared_joins ? tokens : 0);
  // The mean number of rows of an expert decides the width; most have fewer at decode sizes.
  plan.work_tokens = stream_work_tokens(parts_, ceil_div(2 * slots, shape.n_routed_experts));
  MoePlanArgs args;
  args.expert_ids = expert_ids;
  args.num_slots = static_cast<int>(slots);
  args.num_tokens = static_cast<int>(tokens);
  args.num_experts = shape.local_experts();
  args.shared = table.shared_joins;
  args.work_tokens = plan.work_tokens;
  args.classes = table.present.size() > 1 || !table.is_whole ? table.classes : nullptr;
  args.wanted = static_cast<uint8_t>(cls);
  const int64_t max_work = max_moe_work(slots, tokens, shape.local_experts(), plan.work_tokens);
  const int64_t ints = ceil_div(plan.all_slots, 4) * 4 + 4;
  auto* const memory = plan_scratch_.get<int32_t>(ints + max_work * 3);
  if (memory == nullptr) return false;
  args.num_work = memory;
  args.slots = memory + 4;
  args.work = reinterpret_cast<StreamWork*>(memory + ints);
  keep(launch_moe_plan(args, stream_), "moe: plan");
  plan.args.work = args.work;
  plan.args.num_work = args.num_work;
  plan.args.max_work = static_cast<int>(max_work);
  plan.args.max_slots = plan.all_slots;
  plan.args.slots = args.slots;
  plan.args.x_divisor = shape.num_experts_per_tok;
  plan.args.x_routed = static_cast<int>(slots);
  return true;
}

void CudaKernels::moe_streamed(const MatrixView& x, const ExpertTable& table, int cls,
                               const MlpWeight& like, const RouterShape& shape,
                               const int32_t* expert_ids, float* expert_rows, bool fixed_order) {
  const int64_t intermediate = like.gate_proj.rows;
  const int64_t act_cols = ceil_div(intermediate, kUnitCols) * kUnitCols;
  const int64_t all_slots = x.rows * (shape.num_experts_per_tok + (table.shared_joins ? 1 : 0));
  auto* const act = act_scratch_.get<uint16_t>(parts_ * all_slots * act_cols);
  StreamedPlan plan;
  StreamArgs& args = plan.args;
  if (act == nullptr || !give_rows(x, parts_, args) ||
      !plan_streamed(x.rows, table, cls, shape, expert_ids, plan)) {
    return;
  }
  if (act_cols != intermediate) {
    keep(cudaMemsetAsync(act, 0, static_cast<size_t>(parts_ * all_slots * act_cols) * 2, stream_),
         "moe");
  }

  set_shape(args, like.gate_proj);
  args.groups = table.gate_up;
  args.gate_up = true;
  args.fixed_order = fixed_order;
  args.act = act;
  args.act_parts = parts_;
  args.act_part_stride = all_slots * act_cols;
  args.act_row_stride = act_cols;
  keep(launch_linear_stream(args, plan.work_tokens, stream_), "moe: gate and up");

  StreamArgs down = args;
  set_shape(down, like.down_proj);
  down.groups = table.down;
  down.gate_up = false;
  down.x_float = nullptr;
  down.x_divisor = 0;
  down.x = act;
  down.x_part_stride = args.act_part_stride;
  down.x_row_stride = act_cols;
  down.out = expert_rows;
  down.out_row_stride = x.cols;
  down.work_is_older = ring_takes(args);
  keep(launch_linear_stream(down, plan.work_tokens, stream_), "moe: down");
}

bool CudaKernels::takes_many_experts(const MlpWeight& like, int64_t tokens) const {
  return tokens >= kManyExpertTokens && !batch_invariant_ && parts_ == 1 && gemm_runs_ &&
         like.gate_proj.format == LinearFormat::kNvfp4;
}

void CudaKernels::moe_multiplied(const MatrixView& x, const ExpertTable& table, int cls,
                                 const MlpWeight& like, const RouterShape& shape,
                                 const int32_t* expert_ids, float* expert_rows) {
  const int64_t slots = x.rows * shape.num_experts_per_tok;
  const int64_t all_slots = slots + (table.shared_joins ? x.rows : 0);
  const int64_t groups = shape.local_experts() + (table.shared_joins ? 1 : 0);
  GemmPlanArgs plan;
  plan.expert_ids = expert_ids;
  plan.num_slots = static_cast<int>(slots);
  plan.num_tokens = static_cast<int>(x.rows);
  plan.num_experts = shape.local_experts();
  plan.shared = table.shared_joins;
  plan.classes = table.present.size() > 1 || !table.is_whole ? table.classes : nullptr;
  plan.wanted = static_cast<uint8_t>(cls);
  plan.row_capacity = gemm_row_capacity(all_slots, groups);
  plan.work_capacity = max_gemm_work(all_slots, groups);
  auto* const memory = plan_scratch_.get<int32_t>(kGemmClasses + plan.row_capacity +
                                                  kGemmClasses * plan.work_capacity * 3);
  const int64_t intermediate = like.gate_proj.rows;
  const int64_t x_cols = ceil_div(x.cols, kUnitCols) * kUnitCols;
  const int64_t act_cols = ceil_div(intermediate, kUnitCols) * kUnitCols;
  auto* const arranged = x_scratch_.get<uint16_t>(plan.row_capacity * x_cols);
  auto* const act = act_scratch_.get<uint16_t>(plan.row_capacity * act_cols);
  if (memory == nullptr || arranged == nullptr || act == nullptr) return;
  plan.num_work = memory;
  plan.rows = memory + kGemmClasses;
  plan.work = reinterpret_cast<StreamWork*>(plan.rows + plan.row_capacity);
  keep(launch_gemm_plan(plan, stream_), "moe: plan");
  ArrangeArgs arrange;
  arrange.x = x.row<const float>(0);
  arrange.x_stride = x.stride;
  arrange.cols = x.cols;
  arrange.rows = plan.rows;
  arrange.row_capacity = plan.row_capacity;
  arrange.x_divisor = shape.num_experts_per_tok;
  arrange.x_routed = static_cast<int>(slots);
  arrange.out = arranged;
  keep(launch_arrange(arrange, stream_), "moe: tokens by expert");
  if (act_cols != intermediate) {
    keep(cudaMemsetAsync(act, 0, static_cast<size_t>(plan.row_capacity * act_cols) * 2, stream_),
         "moe");
  }

  GemmArgs args;
  PackedShape packed = packed_shape(LinearFormat::kNvfp4, intermediate, x.cols);
  args.groups = table.gate_up;
  args.gate_up = true;
  args.out_rows = static_cast<int>(intermediate);
  args.tiles = static_cast<int>(packed.tiles);
  args.units = static_cast<int>(packed.units);
  args.work = plan.work;
  args.work_capacity = plan.work_capacity;
  args.num_work = plan.num_work;
  args.most_rows = x.rows;
  args.rows = plan.rows;
  args.row_capacity = plan.row_capacity;
  args.x = arranged;
  args.act = act;
  keep(launch_gemm_nvfp4(args, stream_), "moe: gate and up");
  packed = packed_shape(LinearFormat::kNvfp4, x.cols, intermediate);
  args.groups = table.down;
  args.gate_up = false;
  args.out_rows = static_cast<int>(x.cols);
  args.tiles = static_cast<int>(packed.tiles);
  args.units = static_cast<int>(packed.units);
  args.x = act;
  args.out = expert_rows;
  args.out_row_stride = x.cols;
  keep(launch_gemm_nvfp4(args, stream_), "moe: down");
}

void CudaKernels::moe_w4a4(const MatrixView& x, const ExpertTable& table, const MlpWeight& like,
                           const RouterShape& shape, const int32_t* expert_ids,
                           float* expert_rows) {
  const int64_t slots = x.rows * shape.num_experts_per_tok;
  const int64_t intermediate = like.gate_proj.rows;
  auto* const gate = gate_scratch_.get<float>(2 * slots * intermediate);
  if (gate == nullptr) return;
  float* const up = gate + slots * intermediate;
  W4a4Args args;
  args.expert_ids = expert_ids;
  args.slots = slots;
  args.x_divisor = shape.num_experts_per_tok;
  args.out_rows = intermediate;
  args.cols = x.cols;
  args.out_stride = intermediate;
  args.x = quantize(x.row<const float>(0), x.rows, x.cols, x.stride, like.gate_proj.input_scale);
  if (args.x.codes == nullptr) return;
  args.weights = table.w4a4[0];
  args.out = gate;
  launch_linear_w4a4(args, stream_);
  // Experts of a layer share the largest input_scale of each projection pair (Weights::load); up
  // may still differ from gate.
  if (like.up_proj.input_scale != like.gate_proj.input_scale) {
    args.x = quantize(x.row<const float>(0), x.rows, x.cols, x.stride, like.up_proj.input_scale);
    if (args.x.codes == nullptr) return;
  }
  args.weights = table.w4a4[1];
  args.out = up;
  launch_linear_w4a4(args, stream_);
  launch_swiglu(gate, up, slots * intermediate, gate, stream_);
  args.x = quantize(gate, slots, intermediate, intermediate, like.down_proj.input_scale);
  if (args.x.codes == nullptr) return;
  args.weights = table.w4a4[2];
  args.x_divisor = 1;
  args.out_rows = x.cols;
  args.cols = intermediate;
  args.out = expert_rows;
  args.out_stride = x.cols;
  launch_linear_w4a4(args, stream_);
  keep(cudaGetLastError(), "moe with NVFP4 activations");
}

// The rows of one chunk: those of the slots, then those of the shared expert.
void CudaKernels::moe_rows(const MatrixView& x, const ExpertTable& table, const MlpWeight* shared,
                           const RouterShape& shape, const int32_t* expert_ids, float* expert_rows,
                           bool fixed_order) {
  for (const auto& [cls, like] : table.present) {
    if (cls == kW4a4Class && w4a4_on_tensor_cores()) {
      moe_w4a4_tensor(x, table, cls, like, shape, expert_ids, expert_rows, fixed_order);
    } else if (cls == kW4a4Class) {
      moe_w4a4(x, table, like, shape, expert_ids, expert_rows);
    } else if (takes_many_experts(like, x.rows)) {
      moe_multiplied(x, table, cls, like, shape, expert_ids, expert_rows);
    } else {
      moe_streamed(x, table, cls, like, shape, expert_ids, expert_rows, fixed_order);
    }
  }
  if (shared != nullptr && !table.shared_joins) {
    float* const shared_rows = expert_rows + x.rows * shape.num_experts_per_tok * x.cols;
    mlp(x, *shared, MatrixView{shared_rows, DType::kF32, x.rows, x.cols, x.cols});
  }
}

void CudaKernels::moe(const MatrixView& x, std::span<const MlpWeight> experts,
                      const MlpWeight* shared, const RouterShape& shape, const int32_t* expert_ids,
                      const float* weights, const MatrixView& out) {
  if (x.rows == 0) return;
  NIBBLE_CHECK(static_cast<int>(experts.size()) == shape.local_experts());
  NIBBLE_CHECK(experts.size() + 1 <= kMaxGemmGroups);
  if (x.rows > kMoeTokens) {
    for (int64_t t = 0; t < x.rows; t += kMoeTokens) {
      const int64_t count = std::min(kMoeTokens, x.rows - t);
      const int64_t slot = t * shape.num_experts_per_tok;
      moe(x.slice_rows(t, count), experts, shared, shape, expert_ids + slot, weights + slot,
          out.slice_rows(t, count));
    }
    return;
  }
  const ExpertTable* const table = expert_table(experts, shared);
  if (table == nullptr) return;
  const int64_t slots = x.rows * shape.num_experts_per_tok;
  auto* const expert_rows = expert_scratch_.get<float>((slots + x.rows) * x.cols);
  if (expert_rows == nullptr) return;
  if (shape.local_experts() != shape.n_routed_experts) {
    auto* const local_ids = local_scratch_.get<int32_t>(slots);
    if (local_ids == nullptr) return;
    launch_local_experts(expert_ids, slots, shape.first_local_expert, shape.local_experts(),
                         local_ids, stream_);
    expert_ids = local_ids;
  }
  moe_rows(x, *table, shared, shape, expert_ids, expert_rows, fixed_expert_order_);
  moe_combine(shape, expert_ids, weights, shared != nullptr, expert_rows, out);
}

// Chunks as moe() takes them, so that an expert's rows fall into the same pieces; and sums in an
// order that does not hang on which experts are ready.
bool CudaKernels::moe_part(const MatrixView& x, std::span<const MlpWeight> experts,
                           std::span<const int32_t> ready, const MlpWeight* shared,
                           const RouterShape& shape, const int32_t* expert_ids, float* expert_rows,
                           Upload& upload) {
  NIBBLE_CHECK(static_cast<int>(experts.size()) == shape.n_routed_experts);
  NIBBLE_CHECK(experts.size() + 1 <= kMaxGemmGroups);
  ExpertTable table;
  if (!describe_experts(experts, ready, shared, table, table_bytes_)) return false;
  const auto* const bytes = upload.put(std::span<const std::byte>(table_bytes_));
  if (bytes == nullptr) return false;
  table.point_to(bytes, experts.size() + (shared != nullptr ? 1 : 0));
  const int64_t k = shape.num_experts_per_tok;
  for (int64_t t = 0; t < x.rows; t += kMoeTokens) {
    const int64_t count = std::min(kMoeTokens, x.rows - t);
    moe_rows(x.slice_rows(t, count), table, shared, shape, expert_ids + t * k,
             expert_rows + t * (k + 1) * x.cols, true);
  }
  return true;
}

void CudaKernels::moe_combine(const RouterShape& shape, const int32_t* expert_ids,
                              const float* weights, bool with_shared, float* expert_rows,
                              const MatrixView& out) {
  const int64_t k = shape.num_experts_per_tok;
  for (int64_t t = 0; t < out.rows; t += kMoeTokens) {
    const int64_t count = std::min(kMoeTokens, out.rows - t);
    float* const rows = expert_rows + t * (k + 1) * out.cols;
    writes(out);
    launch_moe_combine(rows, expert_ids + t * k, weights + t * k, k,
                       with_shared ? rows + count * k * out.cols : nullptr, out.cols,
                       out.slice_rows(t, count), stream_);
  }
  keep(cudaGetLastError(), "moe: combine");
}

StagedMoe* CudaKernels::staged_moe() {
  if (staged_moe_ == nullptr) staged_moe_ = make_cuda_staged_moe(*this);
  return staged_moe_.get();
}

}  // namespace nibble::cuda
