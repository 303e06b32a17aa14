// Weights go to the device as the checkpoint has them and are rearranged there. Each packing thread
// has page-locked memory, device memory and a stream of its own, so that the copy out of the file,
// the transfer and the rearrangement of different matrices overlap.
#include "nibble/kernels/cuda/pack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/pack_kernels.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/source_codes.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kNvfp4Block = 16;

struct SourceBytes {
  size_t data = 0;
  size_t scales = 0;
  size_t scales_offset() const { return (data + 255) / 256 * 256; }
  size_t total() const { return scales_offset() + scales; }
};

SourceBytes source_bytes(LinearFormat format, int64_t rows, int64_t cols) {
  const auto count = static_cast<size_t>(rows * cols);
  switch (format) {
    case LinearFormat::kF32:
      return {count * 4, 0};
    case LinearFormat::kBf16:
      return {count * 2, 0};
    case LinearFormat::kFp8Block:
      return {
          count,
          static_cast<size_t>(ceil_div(rows, kFp8BlockSize) * ceil_div(cols, kFp8BlockSize)) * 4};
    case LinearFormat::kNvfp4:
      return {count / 2, count / kNvfp4Block};
  }
  return {};
}

// The weight's copy on the device, in the checkpoint's layout.
LinearWeight on_device(const HostLinear& source, const void* memory) {
  LinearWeight weight;
  weight.format = source.format;
  weight.rows = source.rows;
  weight.cols = source.cols;
  weight.data = memory;
  weight.scales = static_cast<const std::byte*>(memory) +
                  source_bytes(source.format, source.rows, source.cols).scales_offset();
  weight.global_scale = source.global_scale;
  weight.input_scale = source.input_scale;
  return weight;
}

// W_UK and W_UV of all heads, one behind the other.
struct MlaUpLayout {
  LinearFormat format = LinearFormat::kBf16;
  size_t k_bytes = 0;
  size_t v_bytes = 0;
};

MlaUpLayout mla_up_layout(LinearFormat format, const MlaShape& shape) {
  const bool exact = format == LinearFormat::kBf16 || format == LinearFormat::kNvfp4;
  MlaUpLayout layout;
  layout.format = exact ? LinearFormat::kBf16 : LinearFormat::kF32;
  const auto heads = static_cast<size_t>(shape.num_heads);
  layout.k_bytes =
      heads * packed_shape(layout.format, shape.kv_lora_rank, shape.qk_nope_head_dim).bytes();
  layout.v_bytes =
      heads * packed_shape(layout.format, shape.v_head_dim, shape.kv_lora_rank).bytes();
  return layout;
}

}  // namespace

PackPool::PackPool(Device& device) : device_(&device) {}

PackPool::~PackPool() {
  for (Slot& slot : free_) {
    if (slot.stream != nullptr) (void)cudaStreamDestroy(slot.stream);
  }
}

Result<PackPool::Slot> PackPool::take(size_t bytes) {
  Slot slot;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      slot = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (slot.stream == nullptr) {
    if (cudaStreamCreateWithFlags(&slot.stream, cudaStreamNonBlocking) != cudaSuccess) {
      return unavailable("cudaStreamCreate failed while packing weights");
    }
    for (auto& event : slot.sent) {
      cudaEvent_t made = nullptr;
      if (cudaEventCreateWithFlags(&made, cudaEventDisableTiming) != cudaSuccess) {
        return unavailable("cudaEventCreate failed while packing weights");
      }
      event.reset(made);
    }
  }
  if (slot.device_memory.size() < bytes) {
    slot.device_memory = Buffer();
    slot.device_memory = NIBBLE_TRY(device_->allocate(bytes));
  }
  if (slot.host_memory.size() == 0) {
    slot.host_memory = NIBBLE_TRY(device_->allocate_host_visible(2 * kPieceBytes));
  }
  return slot;
}

void PackPool::give_back(Slot slot) {
  if (slot.device_memory.size() > kKeptBytes) slot.device_memory = Buffer();
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(slot));
}

Status PackPool::copy(Slot& slot, size_t offset, std::span<const std::byte> source) {
  // Two halves of the page-locked memory by turns: one is filled while the other is sent.
  size_t half = 0;
  for (size_t at = 0; at < source.size(); at += kPieceBytes, half ^= 1) {
    const size_t bytes = std::min(kPieceBytes, source.size() - at);
    std::byte* const staging = slot.host_memory.as<std::byte>() + half * kPieceBytes;
    if (at >= 2 * kPieceBytes && cudaEventSynchronize(slot.sent[half].get()) != cudaSuccess) {
      return unavailable("a transfer of weights failed");
    }
    std::memcpy(staging, source.data() + at, bytes);
    if (cudaMemcpyAsync(slot.device_memory.as<std::byte>() + offset + at, staging, bytes,
                        cudaMemcpyHostToDevice, slot.stream) != cudaSuccess ||
        cudaEventRecord(slot.sent[half].get(), slot.stream) != cudaSuccess) {
      return unavailable("a transfer of weights failed");
    }
  }
  // The next copy starts with the first half again.
  if (cudaStreamSynchronize(slot.stream) != cudaSuccess) {
    return unavailable("a transfer of weights failed");
  }
  return {};
}

Status PackPool::run(const HostLinear& source,
                     const std::function<void(const LinearWeight&, cudaStream_t)>& rearrange) {
  NIBBLE_TRY(use_cuda_device(*device_));  // loading threads come and go
  const SourceBytes bytes = source_bytes(source.format, source.rows, source.cols);
  Slot slot = NIBBLE_TRY(take(bytes.total()));
  Status status = copy(slot, 0, {static_cast<const std::byte*>(source.data), bytes.data});
  if (status && bytes.scales > 0) {
    status = copy(slot, bytes.scales_offset(),
                  {static_cast<const std::byte*>(source.scales), bytes.scales});
  }
  if (status) {
    rearrange(on_device(source, slot.device_memory.data()), slot.stream);
    const cudaError_t launched = cudaGetLastError();
    const cudaError_t finished = cudaStreamSynchronize(slot.stream);
    const cudaError_t code = launched != cudaSuccess ? launched : finished;
    if (code != cudaSuccess) {
      status = unavailable(fmt::format("packing weights: {}", cudaGetErrorString(code)));
    }
  }
  give_back(std::move(slot));
  return status;
}

size_t CudaKernels::packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const {
  return packed_shape(format, rows, cols).bytes();
}

Result<LinearWeight> CudaKernels::pack(const HostLinear& source, ActivationFormat activation,
                                       void* destination) const {
  NIBBLE_CHECK(source.format != LinearFormat::kNvfp4 || source.cols % kNvfp4Block == 0);
  NIBBLE_TRY(check_source_codes(source));
  {
    const std::lock_guard lock(fp4_mutex_);
    fp4_weights_.erase(destination);  // other weights had this address
    fp4_refused_.erase(destination);
  }
  NIBBLE_TRY(pack_pool_->run(source, [&](const LinearWeight& weight, cudaStream_t stream) {
    launch_pack(weight, destination, stream);
  }));
  LinearWeight weight;
  weight.format = source.format;
  weight.activation = activation;
  weight.rows = source.rows;
  weight.cols = source.cols;
  weight.data = destination;
  weight.global_scale = source.format == LinearFormat::kNvfp4 ? source.global_scale : 1;
  weight.input_scale = source.input_scale;
  return weight;
}

size_t CudaKernels::packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const {
  const MlaUpLayout layout = mla_up_layout(format, shape);
  return layout.k_bytes + layout.v_bytes;
}

Result<MlaUpWeight> CudaKernels::pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                             void* destination) const {
  NIBBLE_CHECK(kv_b_proj.rows == shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim));
  NIBBLE_CHECK(kv_b_proj.cols == shape.kv_lora_rank);
  NIBBLE_TRY(check_source_codes(kv_b_proj));
  if (shape.entry_size() > kMaxEntrySize) {
    return unsupported(
        fmt::format("the cuda backend takes cache entries of up to {} values, and "
                    "kv_lora_rank + qk_rope_head_dim is {}; use --backend cpu",
                    kMaxEntrySize, shape.entry_size()));
  }
  const MlaUpLayout layout = mla_up_layout(kv_b_proj.format, shape);
  auto* const k_trans = static_cast<std::byte*>(destination);
  std::byte* const v = k_trans + layout.k_bytes;
  NIBBLE_TRY(pack_pool_->run(kv_b_proj, [&](const LinearWeight& weight, cudaStream_t stream) {
    launch_pack_mla_up(weight, shape.num_heads, shape.qk_nope_head_dim, shape.v_head_dim, k_trans,
                       v, stream);
  }));
  MlaUpWeight weight;
  weight.kv_b_proj.format = layout.format;
  weight.kv_b_proj.rows = shape.num_heads * shape.v_head_dim;
  weight.kv_b_proj.cols = shape.kv_lora_rank;
  weight.kv_b_proj.data = v;
  weight.kv_b_proj.global_scale =
      kv_b_proj.format == LinearFormat::kNvfp4 ? kv_b_proj.global_scale : 1;
  weight.kv_b_k_trans = weight.kv_b_proj;
  weight.kv_b_k_trans.rows = shape.num_heads * shape.kv_lora_rank;
  weight.kv_b_k_trans.cols = shape.qk_nope_head_dim;
  weight.kv_b_k_trans.data = k_trans;
  return weight;
}

}  // namespace nibble::cuda
