#include "nibble/kernels/cuda/cuda_staged_moe.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"
#include "nibble/kernels/cuda/host/tile_host_mlp.h"

namespace nibble::cuda {
namespace {

// Tables of experts under way to the device. A table's page-locked memory is written again so many
// launches later; where few slots make many launches of a layer, the host then waits for its copy.
constexpr size_t kTables = 16;

class CudaStagedMoe final : public StagedMoe {
 public:
  explicit CudaStagedMoe(CudaKernels& kernels) : kernels_(kernels), rows_(kernels.device()) {
    for (size_t i = 0; i < kTables; ++i) tables_.emplace_back(kernels.device());
  }
  CudaStagedMoe(const CudaStagedMoe&) = delete;
  CudaStagedMoe& operator=(const CudaStagedMoe&) = delete;
  ~CudaStagedMoe() override {
    if (there_ != nullptr) (void)cudaEventDestroy(there_);
  }

  void begin(const StagedMoeLayer& layer, const std::optional<StagedMoeGuess>& guess,
             bool with_x) override {
    const RouterShape& shape = *layer.shape;
    NIBBLE_CHECK(shape.local_experts() == shape.n_routed_experts && layer.x.rows > 0);
    layer_ = layer;
    num_choices_ = layer.x.rows * shape.num_experts_per_tok;
    has_guess_ = guess.has_value();
    has_x_ = with_x;
    output_ = rows_.get<float>((num_choices_ + layer.x.rows) * layer.x.cols);
    is_sent_ = output_ != nullptr && send_choices(guess);
    if (!is_sent_ || layer.shared == nullptr) return;
    // A table of shapes alone: no routed expert is ready.
    shapes_.assign(static_cast<size_t>(shape.n_routed_experts), MlpWeight());
    MlpWeight& like = shapes_.front();
    like.gate_proj.rows = like.up_proj.rows = like.down_proj.cols = layer.moe_intermediate_size;
    like.gate_proj.cols = like.up_proj.cols = like.down_proj.rows = layer.x.cols;
    run_part(shapes_, {}, layer.shared);
  }

  Result<StagedMoeChoices> choices() override {
    if (!is_sent_) NIBBLE_TRY(kernels_.device().synchronize());
    const cudaError_t reached = is_sent_ ? cudaEventSynchronize(there_) : cudaErrorUnknown;
    if (reached != cudaSuccess) {
      return unavailable(fmt::format("a step's routing did not come to the host: {} ({})",
                                     cudaGetErrorString(reached), cudaGetErrorName(reached)));
    }
    const auto count = static_cast<size_t>(num_choices_);
    const auto* const ids = host_.as<const int32_t>();
    const auto* const weights = reinterpret_cast<const float*>(ids + count);
    StagedMoeChoices choices{{ids, count}, {weights, count}, {}, {}, {}};
    if (has_guess_) {
      choices.guessed_ids = {ids + 2 * count, count};
      choices.guessed_weights = {weights + 2 * count, count};
    }
    if (has_x_) {
      choices.x = {host_x_.data(), DType::kF32, layer_.x.rows, layer_.x.cols, layer_.x.cols};
    }
    return choices;
  }

  void run(std::span<const MlpWeight> experts, std::span<const int32_t> ready) override {
    if (output_ != nullptr) run_part(experts, ready, nullptr);
  }

  // The host waited for this layer's choices, so what earlier layers sent has left host_rows_.
  void run_on_host(std::span<const MlpWeight> experts, std::span<const int32_t> ids) override {
    NIBBLE_CHECK(has_x_);
    if (output_ == nullptr || !is_sent_) return;
    const int64_t cols = layer_.x.cols;
    const int64_t slots = layer_.shape->num_experts_per_tok;
    const auto* const chosen = host_.as<const int32_t>();
    std::vector<int64_t> places;    // of rows, among the choices
    std::vector<size_t> begins{0};  // of experts, among the places
    for (const int32_t id : ids) {
      for (int64_t i = 0; i < num_choices_; ++i) {
        if (chosen[i] == id) places.push_back(i);
      }
      begins.push_back(places.size());
    }
    const size_t row_bytes = static_cast<size_t>(cols) * sizeof(float);
    if (!grow(host_rows_, places.size() * row_bytes)) return;
    std::vector<const float*> from;
    std::vector<float*> to;
    for (size_t r = 0; r < places.size(); ++r) {
      from.push_back(host_x_.as<const float>() + places[r] / slots * cols);
      to.push_back(host_rows_.as<float>() + static_cast<int64_t>(r) * cols);
    }
    std::vector<HostMlpRun> runs;
    for (size_t e = 0; e < ids.size(); ++e) {
      const size_t count = begins[e + 1] - begins[e];
      runs.push_back({&experts[static_cast<size_t>(ids[e])],
                      std::span(from).subspan(begins[e], count),
                      std::span(to).subspan(begins[e], count)});
    }
    host_mlp()->run(runs);
    for (size_t r = 0; r < places.size(); ++r) {
      kernels_.keep(cudaMemcpyAsync(output_ + places[r] * cols, to[r], row_bytes,
                                    cudaMemcpyHostToDevice, kernels_.stream()),
                    "experts' outputs from the host");
    }
  }

  HostMlp* host_mlp() override {
    if (host_mlp_ == nullptr) {
      // One is left to the thread that launches, one to those that copy.
      host_mlp_ = make_tile_host_mlp(std::max(1, available_processors() - 2));
    }
    return host_mlp_.get();
  }

  void end(const MatrixView& out) override {
    if (output_ == nullptr) return;
    kernels_.moe_combine(*layer_.shape, layer_.expert_ids, layer_.weights, layer_.shared != nullptr,
                         output_, out);
  }

 private:
  void run_part(std::span<const MlpWeight> experts, std::span<const int32_t> ready,
                const MlpWeight* shared) {
    if (!kernels_.moe_part(layer_.x, experts, ready, shared, *layer_.shape, layer_.expert_ids,
                           output_, tables_[next_table_++ % kTables])) {
      output_ = nullptr;  // the error is kept
    }
  }

  // Giving the old memory back waits for the device.
  bool grow(Buffer& buffer, size_t bytes) {
    if (buffer.size() >= bytes) return true;
    auto memory = kernels_.device().allocate_host_visible(bytes + bytes / 4);
    if (!memory) {
      keep_cuda_error(kernels_.device(), std::move(memory).error());
      return false;
    }
    buffer = *std::move(memory);
    return true;
  }

  // Host memory: ids, weights, guessed ids, guessed weights.
  bool send_choices(const std::optional<StagedMoeGuess>& guess) {
    const auto count = static_cast<size_t>(num_choices_);
    const size_t bytes = count * sizeof(int32_t);
    if (!grow(host_, 4 * bytes)) return false;
    if (there_ == nullptr &&
        cudaEventCreateWithFlags(&there_, cudaEventDisableTiming) != cudaSuccess) {
      keep_cuda_error(kernels_.device(), {ErrorCode::kUnavailable, "cudaEventCreate failed"});
      return false;
    }
    std::byte* const to = host_.as<std::byte>();
    const cudaStream_t stream = kernels_.stream();
    kernels_.keep(cudaMemcpyAsync(to, layer_.expert_ids, bytes, cudaMemcpyDefault, stream),
                  "a step's routing");
    kernels_.keep(cudaMemcpyAsync(to + bytes, layer_.weights, bytes, cudaMemcpyDefault, stream),
                  "a step's routing");
    if (guess) {
      kernels_.route(layer_.x, *guess->gate, guess->e_score_correction_bias, *layer_.shape,
                     reinterpret_cast<int32_t*>(to + 2 * bytes),
                     reinterpret_cast<float*>(to + 3 * bytes));
    }
    if (has_x_) {
      const MatrixView& x = layer_.x;
      const auto row_bytes = static_cast<size_t>(x.cols) * sizeof(float);
      if (!grow(host_x_, static_cast<size_t>(x.rows) * row_bytes)) return false;
      kernels_.keep(cudaMemcpy2DAsync(host_x_.data(), row_bytes, x.row<const float>(0),
                                      static_cast<size_t>(x.stride) * sizeof(float), row_bytes,
                                      static_cast<size_t>(x.rows), cudaMemcpyDeviceToHost, stream),
                    "a layer's input to the host");
    }
    const cudaError_t recorded = cudaEventRecord(there_, stream);
    kernels_.keep(recorded, "a step's routing");
    return recorded == cudaSuccess;
  }

  CudaKernels& kernels_;
  Scratch rows_;  // [tokens * (k + 1), hidden_size]
  std::deque<Upload> tables_;
  size_t next_table_ = 0;
  Buffer host_;
  Buffer host_x_;     // [tokens, hidden_size]
  Buffer host_rows_;  // outputs on their way to output_
  std::unique_ptr<HostMlp> host_mlp_;
  cudaEvent_t there_ = nullptr;
  StagedMoeLayer layer_;
  std::vector<MlpWeight> shapes_;
  int64_t num_choices_ = 0;
  float* output_ = nullptr;
  bool has_guess_ = false;
  bool has_x_ = false;
  bool is_sent_ = false;
};

}  // namespace

std::unique_ptr<StagedMoe> make_cuda_staged_moe(CudaKernels& kernels) {
  return std::make_unique<CudaStagedMoe>(kernels);
}

}  // namespace nibble::cuda
