#include "tests/cuda/host_side_cuda.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/cuda/cuda_kernels.h"

namespace nibble {
namespace {

// Allocates what host and GPU both see.
class HostVisibleDevice final : public Device {
 public:
  explicit HostVisibleDevice(Device& cuda) : cuda_(&cuda) {}
  std::string_view name() const override { return cuda_->name(); }
  Result<Buffer> allocate(size_t bytes) override { return cuda_->allocate_host_visible(bytes); }
  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    std::memcpy(destination, source.data(), source.size());
    return {};
  }
  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    std::memcpy(destination.data(), source, destination.size());
    return {};
  }
  Status synchronize() override { return cuda_->synchronize(); }
  Result<DeviceMemory> memory() override { return cuda_->memory(); }
  bool is_host() const override { return true; }

 protected:
  void deallocate(void*, size_t) noexcept override {}  // its buffers belong to the GPU's device

 private:
  Device* cuda_;
};

class HostSideCuda final : public Kernels {
 public:
  explicit HostSideCuda(std::unique_ptr<Kernels> cuda)
      : cuda_(std::move(cuda)), device_(cuda_->device()) {}

  std::string_view name() const override { return cuda_->name(); }
  DType activation_dtype() const override { return cuda_->activation_dtype(); }
  Device& device() override { return device_; }
  std::string_view packed_layout() const override { return cuda_->packed_layout(); }
  size_t packed_bytes(LinearFormat format, int64_t rows, int64_t cols) const override {
    return cuda_->packed_bytes(format, rows, cols);
  }
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override {
    return cuda_->pack(source, activation, destination);
  }
  size_t packed_mla_up_bytes(LinearFormat format, const MlaShape& shape) const override {
    return cuda_->packed_mla_up_bytes(format, shape);
  }
  Result<MlaUpWeight> pack_mla_up(const HostLinear& kv_b_proj, const MlaShape& shape,
                                  void* destination) const override {
    return cuda_->pack_mla_up(kv_b_proj, shape, destination);
  }

  void embed(const MatrixView& table, std::span<const int32_t> token_ids,
             const MatrixView& out) override {
    MatrixView on_device = table;
    on_device.data =
        copy(table.data, static_cast<size_t>(table.rows * table.stride * dtype_size(table.dtype)));
    cuda_->embed(on_device, token_ids, output(out));
    finish();
  }
  void embed_part(const MatrixView& table, int64_t first_id, std::span<const int32_t> token_ids,
                  const MatrixView& out) override {
    MatrixView on_device = table;
    on_device.data =
        copy(table.data, static_cast<size_t>(table.rows * table.stride * dtype_size(table.dtype)));
    cuda_->embed_part(on_device, first_id, token_ids, output(out));
    finish();
  }
  void rms_norm(const MatrixView& x, const float* weight, float epsilon,
                const MatrixView& out) override {
    const MatrixView input = input_of(x);
    // In place stays in place.
    const MatrixView result = x.data == out.data ? in_place(x) : output(out);
    cuda_->rms_norm(x.data == out.data ? result : input, vector(weight, x.cols), epsilon, result);
    finish();
  }
  void linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) override {
    cuda_->linear(input_of(x), weight, output(out));
    finish();
  }
  void linear_two(const MatrixView& x, const LinearWeight& first, const MatrixView& first_out,
                  const LinearWeight& second, const MatrixView& second_out) override {
    cuda_->linear_two(input_of(x), first, output(first_out), second, output(second_out));
    finish();
  }
  void add(const MatrixView& x, const MatrixView& y) override {
    cuda_->add(in_place(x), input_of(y));
    finish();
  }
  void add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight, float epsilon,
                    const MatrixView& out) override {
    cuda_->add_rms_norm(in_place(x), input_of(y), vector(weight, x.cols), epsilon, output(out));
    finish();
  }
  void rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                    const AttentionBatch& batch) override {
    cuda_->rotary_query(in_place(q), shape, table(rope), batch);
    finish();
  }
  void mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                       const MlaShape& shape, const RopeTable& rope, const AttentionBatch& batch,
                       const KvCacheView& cache) override {
    const size_t bytes = cache_bytes(cache);
    KvCacheView on_device = cache;
    on_device.data = copy(cache.data, bytes);
    results_.push_back({cache.data, on_device.data, 1, bytes, bytes});
    cuda_->mla_cache_write(input_of(kv_a), vector(kv_a_layernorm, shape.kv_lora_rank), epsilon,
                           shape, table(rope), batch, on_device);
    finish();
  }
  void mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* kv_a_layernorm,
                   float epsilon, const MlaShape& shape, const RopeTable& rope,
                   const AttentionBatch& batch, const KvCacheView& cache) override {
    const size_t bytes = cache_bytes(cache);
    KvCacheView on_device = cache;
    on_device.data = copy(cache.data, bytes);
    results_.push_back({cache.data, on_device.data, 1, bytes, bytes});
    cuda_->mla_prepare(in_place(q), input_of(kv_a), vector(kv_a_layernorm, shape.kv_lora_rank),
                       epsilon, shape, table(rope), batch, on_device);
    finish();
  }
  void mla_attention(const MatrixView& q, const MlaUpWeight& weight, const MlaShape& shape,
                     const AttentionBatch& batch, const KvCacheView& cache,
                     const MatrixView& out) override {
    KvCacheView on_device = cache;
    on_device.data = copy(cache.data, cache_bytes(cache));
    cuda_->mla_attention(input_of(q), weight, shape, batch, on_device, output(out));
    finish();
  }
  void mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) override {
    cuda_->mlp(input_of(x), weight, output(out));
    finish();
  }
  void route(const MatrixView& x, const LinearWeight& gate, const float* bias,
             const RouterShape& shape, int32_t* expert_ids, float* weights) override {
    const auto bytes = static_cast<size_t>(x.rows * shape.num_experts_per_tok) * 4;
    void* const ids = copy(expert_ids, bytes);
    void* const chosen = copy(weights, bytes);
    results_.push_back({expert_ids, ids, 1, bytes, bytes});
    results_.push_back({weights, chosen, 1, bytes, bytes});
    cuda_->route(input_of(x), gate, vector(bias, shape.n_routed_experts), shape,
                 static_cast<int32_t*>(ids), static_cast<float*>(chosen));
    finish();
  }
  void moe(const MatrixView& x, std::span<const MlpWeight> experts, const MlpWeight* shared,
           const RouterShape& shape, const int32_t* expert_ids, const float* weights,
           const MatrixView& out) override {
    const auto bytes = static_cast<size_t>(x.rows * shape.num_experts_per_tok) * 4;
    cuda_->moe(input_of(x), experts, shared, shape,
               static_cast<const int32_t*>(copy(expert_ids, bytes)),
               static_cast<const float*>(copy(weights, bytes)), output(out));
    finish();
  }

 private:
  // Rows of `row_bytes` every `stride` bytes that go back to the host.
  struct Returned {
    void* host;
    void* device;
    size_t rows;
    size_t row_bytes;
    size_t stride;
  };

  static size_t cache_bytes(const KvCacheView& cache) {
    return static_cast<size_t>(cache.num_blocks * cache.block_size * cache.entry_size *
                               dtype_size(cache.dtype));
  }
  void* copy(const void* data, size_t bytes) {
    buffers_.push_back(device_.allocate(bytes + 256).value());
    std::memset(buffers_.back().data(), 0xff, bytes + 256);  // NaN behind the end
    if (bytes > 0) std::memcpy(buffers_.back().data(), data, bytes);
    return buffers_.back().data();
  }
  const float* vector(const float* data, int64_t size) {
    return static_cast<const float*>(copy(data, static_cast<size_t>(size) * sizeof(float)));
  }
  RopeTable table(const RopeTable& rope) {
    const int64_t size = rope.max_positions * rope.half_dim;
    return {vector(rope.cos, size), vector(rope.sin, size), rope.max_positions, rope.half_dim};
  }
  // The same stride; what lies between the rows is NaN.
  MatrixView matrix(const MatrixView& host, bool with_values) {
    MatrixView view = host;
    const size_t stride = static_cast<size_t>(host.stride) * sizeof(float);
    const auto rows = static_cast<size_t>(host.rows);
    buffers_.push_back(device_.allocate(rows * stride + 256).value());
    view.data = buffers_.back().data();
    std::memset(view.data, 0xff, rows * stride + 256);
    for (int64_t r = 0; with_values && r < host.rows; ++r) {
      std::memcpy(view.row<float>(r), host.row<float>(r),
                  static_cast<size_t>(host.cols) * sizeof(float));
    }
    return view;
  }
  MatrixView input_of(const MatrixView& host) { return matrix(host, true); }
  MatrixView returned(const MatrixView& host, bool with_values) {
    const MatrixView view = matrix(host, with_values);
    results_.push_back({host.data, view.data, static_cast<size_t>(host.rows),
                        static_cast<size_t>(host.cols) * sizeof(float),
                        static_cast<size_t>(host.stride) * sizeof(float)});
    return view;
  }
  MatrixView output(const MatrixView& host) { return returned(host, false); }
  MatrixView in_place(const MatrixView& host) { return returned(host, true); }

  void finish() {
    const Status status = cuda_->device().synchronize();
    if (!status) throw std::runtime_error(status.error().message);
    for (const Returned& r : results_) {
      for (size_t row = 0; row < r.rows; ++row) {
        const auto* const from = static_cast<const std::byte*>(r.device) + row * r.stride;
        std::memcpy(static_cast<std::byte*>(r.host) + row * r.stride, from, r.row_bytes);
        // What lies behind the row is still NaN: an output of a matrix keeps to its columns.
        for (size_t i = r.row_bytes; i < r.stride; ++i) {
          if (from[i] != std::byte{0xff}) throw std::runtime_error("a write behind a row's end");
        }
      }
    }
    results_.clear();
    buffers_.clear();
  }

  std::unique_ptr<Kernels> cuda_;
  HostVisibleDevice device_;
  std::vector<Buffer> buffers_;
  std::vector<Returned> results_;
};

}  // namespace

std::unique_ptr<Kernels> make_host_side_cuda(int activation_parts, bool batch_invariant) {
  CudaOptions options;
  options.batch_invariant = batch_invariant;
  options.activation_parts = activation_parts;
  auto kernels = make_cuda_kernels(options);
  NIBBLE_CHECK(kernels.has_value());
  return std::make_unique<HostSideCuda>(*std::move(kernels));
}

}  // namespace nibble
