// What loading refuses. That it loads good checkpoints is shown by what they compute, in
// oracle_test.cpp.
#include "nibble/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <new>
#include <set>
#include <vector>

#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/kernels/registry.h"
#include "nibble/kernels/weight_placer.h"
#include "tests/model/demo.h"
#include "tests/model/forwarding_kernels.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// The demo, with one tensor in another state.
class AlteredSource final : public CheckpointSource {
 public:
  enum class State { kReplaced, kWithoutMemory };

  AlteredSource(std::string name, State state, std::vector<std::byte> bytes = {})
      : demo_(*SafetensorsSource::open(testing::demo_checkpoint())),
        name_(std::move(name)),
        state_(state),
        bytes_(std::move(bytes)) {}

  std::span<const TensorInfo> tensors() const override { return demo_->tensors(); }
  const TensorInfo* find(std::string_view name) const override { return demo_->find(name); }
  Result<TensorView> read(std::string_view name) const override {
    auto view = demo_->read(name);
    if (name != name_) return view;
    if (state_ == State::kWithoutMemory) throw std::bad_alloc();
    view->bytes = bytes_;
    return view;
  }
  void release(std::string_view /*name*/) const override {}

 private:
  std::unique_ptr<SafetensorsSource> demo_;
  std::string name_;
  State state_;
  std::vector<std::byte> bytes_;
};

Status load_altered(const AlteredSource& source) {
  const auto config = load_config(testing::demo_checkpoint());
  auto kernels = *make_kernels("cpu", {});
  WeightsOptions options;
  options.max_positions = 16;
  options.threads = 2;
  const auto weights = Weights::load(source, *config, options, *kernels);
  if (!weights) return tl::unexpected(weights.error());
  return {};
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

class PlacingKernels final : public testing::ForwardingKernels, public WeightPlacer {
 public:
  using ForwardingKernels::ForwardingKernels;

  void expect_weights(int64_t matrices) override { expected = matrices; }
  void place_weight(void* destination, LinearFormat format, int64_t rows, int64_t cols) override {
    EXPECT_GT(packed_bytes(format, rows, cols), 0u);
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(placed_.insert(destination).second);
  }
  Result<LinearWeight> pack(const HostLinear& source, ActivationFormat activation,
                            void* destination) const override {
    {
      const std::lock_guard lock(mutex_);
      EXPECT_TRUE(placed_.contains(destination)) << "packed before it was placed";
      ++packed;
    }
    return ForwardingKernels::pack(source, activation, destination);
  }

  int64_t expected = 0;
  mutable int64_t packed = 0;

 private:
  mutable std::mutex mutex_;
  std::set<void*> placed_;
};

TEST(WeightsLoad, PlacesEveryMatrixBeforeItIsPacked) {
  const auto source = SafetensorsSource::open(testing::demo_checkpoint()).value();
  const auto config = load_config(testing::demo_checkpoint());
  PlacingKernels kernels(*make_kernels("cpu", {}));
  WeightsOptions options;
  options.max_positions = 16;
  options.threads = 2;
  const auto weights = Weights::load(*source, *config, options, kernels);
  ASSERT_TRUE(weights) << weights.error().message;
  const auto up_projections = static_cast<int64_t>(weights->layers.size()) + 1;  // and MTP's
  EXPECT_GT(kernels.packed, 0);
  EXPECT_EQ(kernels.expected, kernels.packed + up_projections);
}

TEST(WeightsLoad, LeavesTheEmbeddingInTheSourceWhenToldTo) {
  const auto source = SafetensorsSource::open(testing::demo_checkpoint()).value();
  const auto config = load_config(testing::demo_checkpoint());
  const auto kernels = *make_kernels("cpu", {});
  const TensorView view = source->read("model.embed_tokens.weight").value();
  for (const bool stays : {false, true}) {
    WeightsOptions options;
    options.max_positions = 16;
    options.embedding_stays_in_source = stays;
    const Weights weights = Weights::load(*source, *config, options, *kernels).value();
    EXPECT_EQ(weights.embed_tokens.data == view.bytes.data(), stays);
    EXPECT_EQ(weights.mapped_bytes, stays ? view.bytes.size() : 0);
    EXPECT_EQ(std::memcmp(weights.embed_tokens.data, view.bytes.data(), view.bytes.size()), 0);
  }
}

TEST(WeightsLoad, RefusesNormsThatAreNotFinite) {
  for (const int bad : {0x7fc0, 0x7f80, 0xff80}) {  // NaN and both infinities in BF16
    std::vector<uint16_t> norm(384, 0x3f80);
    norm[5] = static_cast<uint16_t>(bad);
    const std::string name = "model.layers.1.input_layernorm.weight";
    const AlteredSource source(name, AlteredSource::State::kReplaced, bytes_of(norm));
    const Status status = load_altered(source);
    ASSERT_FALSE(status.has_value()) << bad;
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(status.error().message, HasSubstr(name));
    EXPECT_THAT(status.error().message, HasSubstr("at 5"));
  }
}

TEST(WeightsLoad, RefusesARouterBiasThatIsNotFinite) {
  std::vector<float> bias(16, 0.0F);
  bias[15] = std::nanf("");
  const std::string name = "model.layers.2.mlp.gate.e_score_correction_bias";
  const AlteredSource source(name, AlteredSource::State::kReplaced, bytes_of(bias));
  const Status status = load_altered(source);
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(status.error().message, HasSubstr(name));
}

TEST(WeightsLoad, ReportsThatMemoryRanOutWithTheTensor) {
  for (const char* module : {"model.layers.3.mlp.experts.7.up_proj", "model.norm"}) {
    const AlteredSource source(std::string(module) + ".weight",
                               AlteredSource::State::kWithoutMemory);
    const Status status = load_altered(source);
    ASSERT_FALSE(status.has_value()) << module;
    EXPECT_EQ(status.error().code, ErrorCode::kOutOfMemory);
    EXPECT_THAT(status.error().message, HasSubstr(module));
  }
}

}  // namespace
}  // namespace nibble
