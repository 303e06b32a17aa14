#include "nibble/kernels/cuda/cuda_sampler.h"

#include <cstring>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/device_memory.h"
#include "nibble/kernels/cuda/sample.h"

namespace nibble::cuda {
namespace {

// Arrays of different types, one behind the other, for one transfer.
class Arena {
 public:
  // Where the array begins.
  template <typename T>
  size_t add(const std::vector<T>& values) {
    bytes_.resize((bytes_.size() + 15) / 16 * 16);
    const size_t offset = bytes_.size();
    bytes_.resize(offset + values.size() * sizeof(T));
    if (!values.empty()) {
      std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(T));
    }
    return offset;
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

template <typename T>
int32_t append(std::vector<T>& all, std::span<const T> values) {
  const auto first = static_cast<int32_t>(all.size());
  all.insert(all.end(), values.begin(), values.end());
  return first;
}

class CudaSampler final : public DeviceSampler {
 public:
  CudaSampler(Device& device, int64_t vocab_size)
      : device_(&device), vocab_size_(vocab_size), upload_(device), work_(device), out_(device) {}

  void sample(const MatrixView& logits, std::span<const SampleRow> rows) override {
    count_ = rows.size();
    if (rows.empty()) return;
    NIBBLE_CHECK(logits.cols == vocab_size_);
    std::vector<DeviceSampleRow> device_rows;
    std::vector<TokenBias> bias;
    std::vector<int32_t> forbidden;
    std::vector<TokenSeen> seen;
    std::vector<uint64_t> masks;
    bool needs_work = false;
    for (const SampleRow& row : rows) {
      DeviceSampleRow& to = device_rows.emplace_back();
      NIBBLE_CHECK(row.row >= 0 && row.row < logits.rows);
      NIBBLE_CHECK(row.forced < vocab_size_ && row.draft < vocab_size_);
      to.row = row.row;
      to.plain =
          row.bias.empty() && row.allowed.empty() && row.forbidden.empty() && row.seen.empty() ? 1
                                                                                               : 0;
      to.num_bias = static_cast<int32_t>(row.bias.size());
      to.first_bias = append(bias, row.bias);
      to.num_forbidden = static_cast<int32_t>(row.forbidden.size());
      to.first_forbidden = append(forbidden, row.forbidden);
      to.num_seen = static_cast<int32_t>(row.seen.size());
      to.first_seen = append(seen, row.seen);
      if (!row.allowed.empty()) {
        NIBBLE_CHECK(static_cast<int64_t>(row.allowed.size()) >= (vocab_size_ + 63) / 64);
        to.mask = append(masks, row.allowed);
      }
      to.repetition_penalty = row.repetition_penalty;
      to.presence_penalty = row.presence_penalty;
      to.frequency_penalty = row.frequency_penalty;
      to.forced = row.forced;
      to.greedy = row.greedy ? 1 : 0;
      to.temperature = row.temperature;
      to.top_k = row.top_k;
      to.top_p = row.top_p;
      to.min_p = row.min_p;
      to.uniform = row.uniform;
      NIBBLE_CHECK(row.keep_weights < kept_rows_ && row.draft_weights < kept_rows_);
      NIBBLE_CHECK(row.keep_weights < 0 || !row.greedy);
      NIBBLE_CHECK(row.draft_weights < 0 || (row.draft >= 0 && !row.greedy));
      to.keep_weights = row.keep_weights;
      to.draft = row.draft;
      to.relaxed_topk = row.relaxed_topk;
      to.relaxed_delta = row.relaxed_delta;
      to.draft_weights = row.draft_weights;
      to.acceptance = row.acceptance;
      NIBBLE_CHECK(row.logprobs <= kMaxSampledTop);
      to.logprobs = row.logprobs;
      needs_work |= (to.plain == 0 || to.greedy == 0) && to.keep_weights < 0;
    }
    launch(logits, device_rows, bias, forbidden, seen, masks, needs_work);
  }

  std::span<const SampledRow> results() const override {
    return {results_.as<const SampledRow>(), count_};
  }

  Status reserve_weights(int64_t rows) override {
    NIBBLE_CHECK(kept_rows_ == 0 && rows >= 0);
    kept_totals_ = NIBBLE_TRY(device_->allocate(static_cast<size_t>(rows) * sizeof(double)));
    kept_ = NIBBLE_TRY(device_->allocate(static_cast<size_t>(rows * vocab_size_) * sizeof(float)));
    kept_rows_ = rows;
    return {};
  }

  Status copy_weights(int64_t row, std::span<float> weights) override {
    NIBBLE_CHECK(row >= 0 && row < kept_rows_);
    NIBBLE_CHECK(static_cast<int64_t>(weights.size()) == vocab_size_);
    NIBBLE_TRY(device_->copy_to_host(std::as_writable_bytes(weights),
                                     kept_.as<const float>() + row * vocab_size_));
    return device_->synchronize();
  }

 private:
  void launch(const MatrixView& logits, const std::vector<DeviceSampleRow>& rows,
              const std::vector<TokenBias>& bias, const std::vector<int32_t>& forbidden,
              const std::vector<TokenSeen>& seen, const std::vector<uint64_t>& masks,
              bool needs_work) {
    Arena arena;
    const size_t rows_at = arena.add(rows);
    const size_t bias_at = arena.add(bias);
    const size_t forbidden_at = arena.add(forbidden);
    const size_t seen_at = arena.add(seen);
    const size_t masks_at = arena.add(masks);
    const size_t bytes = rows.size() * sizeof(SampledRow);
    if (!make_room(bytes)) return;
    const std::byte* const at = upload_.put(arena.bytes());
    SampledRow* const out = out_.get<SampledRow>(static_cast<int64_t>(rows.size()));
    float* const work =
        needs_work ? work_.get<float>(static_cast<int64_t>(rows.size()) * vocab_size_) : nullptr;
    if (at == nullptr || out == nullptr || (needs_work && work == nullptr)) return;
    SampleArgs args;
    args.logits = logits.row<const float>(0);
    args.stride = logits.stride;
    args.vocab = static_cast<int32_t>(vocab_size_);
    args.work = work;
    args.rows = reinterpret_cast<const DeviceSampleRow*>(at + rows_at);
    args.bias = reinterpret_cast<const TokenBias*>(at + bias_at);
    args.forbidden = reinterpret_cast<const int32_t*>(at + forbidden_at);
    args.seen = reinterpret_cast<const TokenSeen*>(at + seen_at);
    args.masks = reinterpret_cast<const uint64_t*>(at + masks_at);
    args.kept = kept_.as<float>();
    args.kept_totals = kept_totals_.as<double>();
    args.results = out;
    cudaStream_t stream = cuda_stream(*device_);
    keep(launch_sample(args, static_cast<int64_t>(rows.size()), stream), "sample");
    keep(cudaMemcpyAsync(results_.data(), out, bytes, cudaMemcpyDeviceToHost, stream),
         "a copy of tokens to the host");
  }

  // Page-locked room for the results, which are kUndecided until the device has written them.
  bool make_room(size_t bytes) {
    if (results_.size() < bytes) {
      results_ = Buffer();
      auto grown = device_->allocate_host_visible(2 * bytes);
      if (!grown) {
        count_ = 0;
        keep_cuda_error(*device_, std::move(grown).error());
        return false;
      }
      results_ = *std::move(grown);
    }
    for (size_t i = 0; i < count_; ++i) results_.as<SampledRow>()[i] = SampledRow();
    return true;
  }

  void keep(cudaError_t code, std::string_view operation) {
    if (code == cudaSuccess) return;
    keep_cuda_error(*device_, {ErrorCode::kUnavailable,
                               std::string(operation) + ": " + cudaGetErrorString(code)});
  }

  Device* device_;
  int64_t vocab_size_;
  Upload upload_;
  Scratch work_;
  Scratch out_;
  Buffer results_;
  size_t count_ = 0;
  int64_t kept_rows_ = 0;
  Buffer kept_;         // float [kept_rows_, vocab_size_]
  Buffer kept_totals_;  // double [kept_rows_]
};

}  // namespace

Result<std::unique_ptr<DeviceSampler>> make_cuda_sampler(Device& device, int64_t vocab_size) {
  if (vocab_size > kMaxSampledVocab) return std::unique_ptr<DeviceSampler>();
  return std::unique_ptr<DeviceSampler>(std::make_unique<CudaSampler>(device, vocab_size));
}

}  // namespace nibble::cuda
