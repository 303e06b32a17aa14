#include "nibble/kernels/cuda/cuda_staged_moe.h"

#include <fmt/format.h>

#include <deque>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels_impl.h"

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

  void begin(const StagedMoeLayer& layer, const std::optional<StagedMoeGuess>& guess) override {
    const RouterShape& shape = *layer.shape;
    NIBBLE_CHECK(shape.local_experts() == shape.n_routed_experts && layer.x.rows > 0);
    layer_ = layer;
    num_choices_ = layer.x.rows * shape.num_experts_per_tok;
    has_guess_ = guess.has_value();
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
    StagedMoeChoices choices{{ids, count}, {weights, count}, {}, {}};
    if (has_guess_) {
      choices.guessed_ids = {ids + 2 * count, count};
      choices.guessed_weights = {weights + 2 * count, count};
    }
    return choices;
  }

  void run(std::span<const MlpWeight> experts, std::span<const int32_t> ready) override {
    if (output_ != nullptr) run_part(experts, ready, nullptr);
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

  // Host memory: ids, weights, guessed ids, guessed weights.
  bool send_choices(const std::optional<StagedMoeGuess>& guess) {
    const auto count = static_cast<size_t>(num_choices_);
    const size_t bytes = count * sizeof(int32_t);
    if (host_.size() < 4 * bytes) {  // giving the old memory back waits for the device
      auto memory = kernels_.device().allocate_host_visible(5 * bytes);
      if (!memory) {
        keep_cuda_error(kernels_.device(), std::move(memory).error());
        return false;
      }
      host_ = *std::move(memory);
    }
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
    const cudaError_t recorded = cudaEventRecord(there_, stream);
    kernels_.keep(recorded, "a step's routing");
    return recorded == cudaSuccess;
  }

  CudaKernels& kernels_;
  Scratch rows_;  // [tokens * (k + 1), hidden_size]
  std::deque<Upload> tables_;
  size_t next_table_ = 0;
  Buffer host_;
  cudaEvent_t there_ = nullptr;
  StagedMoeLayer layer_;
  std::vector<MlpWeight> shapes_;
  int64_t num_choices_ = 0;
  float* output_ = nullptr;
  bool has_guess_ = false;
  bool is_sent_ = false;
};

}  // namespace

std::unique_ptr<StagedMoe> make_cuda_staged_moe(CudaKernels& kernels) {
  return std::make_unique<CudaStagedMoe>(kernels);
}

}  // namespace nibble::cuda
