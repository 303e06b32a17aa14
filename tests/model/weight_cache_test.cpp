// The cache of packed weights: that weights from it are the same bits, and that files which
// are not what they should be are refused and replaced.
#include "nibble/model/weight_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/kernels/registry.h"
#include "nibble/model/weights.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// The demo, loaded with a weight cache in a folder of its own.
class WeightCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(::testing::TempDir()) /
                 ("weight_cache_" +
                  std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  Result<Weights> load(bool load_mtp = true, std::string identity = "demo") {
    const auto source = SafetensorsSource::open(testing::demo_checkpoint());
    WeightsOptions options;
    options.max_positions = 16;
    options.threads = 2;
    options.load_mtp = load_mtp;
    options.weight_cache = directory_;
    options.checkpoint_identity = std::move(identity);
    return Weights::load(**source, *load_config(testing::demo_checkpoint()), options, *kernels_);
  }

  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      found.push_back(entry.path());
    }
    return found;
  }

  // What logits would be made of: one product with each of some weights of every kind.
  std::vector<float> sample(const Weights& weights) {
    std::vector<float> values;
    const auto multiply = [&](const LinearWeight& weight) {
      std::vector<float> x(static_cast<size_t>(weight.cols));
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) - 3;
      std::vector<float> out(static_cast<size_t>(weight.rows));
      kernels_->linear({x.data(), DType::kF32, 1, weight.cols, weight.cols}, weight,
                       {out.data(), DType::kF32, 1, weight.rows, weight.rows});
      values.insert(values.end(), out.begin(), out.end());
    };
    multiply(weights.lm_head);
    multiply(weights.layers[0].mlp->down_proj);
    multiply(weights.layers[2].moe->experts[5].gate_proj);
    multiply(weights.layers[3].moe->gate);
    multiply(weights.layers[1].self_attn.kv_b_proj.kv_b_proj);
    multiply(weights.layers[1].self_attn.kv_b_proj.kv_b_k_trans);
    values.insert(values.end(), weights.norm, weights.norm + 384);
    const auto* embedding = weights.embed_tokens.row<uint16_t>(17);
    values.insert(values.end(), embedding, embedding + 384);
    return values;
  }

  std::filesystem::path directory_;
  std::unique_ptr<Kernels> kernels_ = *make_kernels("cpu", {});
};

TEST_F(WeightCacheTest, TheSecondLoadMapsTheSameBits) {
  const auto packed = load();
  ASSERT_TRUE(packed.has_value()) << packed.error().message;
  EXPECT_FALSE(packed->cache_file.has_value());
  ASSERT_EQ(files().size(), 1u);
  const auto mapped = load();
  ASSERT_TRUE(mapped.has_value()) << mapped.error().message;
  EXPECT_TRUE(mapped->cache_file.has_value());
  EXPECT_EQ(mapped->device_bytes, packed->device_bytes);
  EXPECT_GT(mapped->mapped_bytes, packed->device_bytes / 2);
  const std::vector<float> want = sample(*packed);
  const std::vector<float> got = sample(*mapped);
  ASSERT_EQ(got.size(), want.size());
  EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0);
}

TEST_F(WeightCacheTest, OtherOptionsAndOtherCheckpointsHaveTheirOwnFiles) {
  ASSERT_TRUE(load(true, "one").has_value());
  ASSERT_TRUE(load(true, "another").has_value());
  const auto without_mtp = load(false, "one");
  ASSERT_TRUE(without_mtp.has_value());
  EXPECT_FALSE(without_mtp->cache_file.has_value());
  EXPECT_EQ(files().size(), 3u);
}

TEST_F(WeightCacheTest, ADamagedFileIsRefusedAndWrittenAnew) {
  ASSERT_TRUE(load().has_value());
  const std::filesystem::path path = files().at(0);
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  // The header, a weight (they begin at 4096), the index, the last name.
  for (const int64_t place : {int64_t{3}, int64_t{20}, int64_t{4096 + 11}, size - 500, size - 1}) {
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(place);
      const int byte = file.get();
      file.seekp(place);
      file.put(static_cast<char>(byte ^ 0x10));
    }
    ::testing::internal::CaptureStderr();
    const auto loaded = load();
    const std::string log = ::testing::internal::GetCapturedStderr();
    ASSERT_TRUE(loaded.has_value()) << loaded.error().message;
    EXPECT_FALSE(loaded->cache_file.has_value()) << "byte " << place;
    EXPECT_THAT(log, HasSubstr("packed again")) << "byte " << place;
    EXPECT_THAT(log, HasSubstr(path.string())) << "byte " << place;
    const auto again = load();
    ASSERT_TRUE(again.has_value());
    EXPECT_TRUE(again->cache_file.has_value()) << "byte " << place;
  }
  for (const int64_t length : {int64_t{0}, int64_t{100}, int64_t{5000}, size - 1}) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(length));
    const auto loaded = load();
    ASSERT_TRUE(loaded.has_value()) << loaded.error().message;
    EXPECT_FALSE(loaded->cache_file.has_value()) << length << " bytes";
  }
}

TEST_F(WeightCacheTest, ACacheOfSomethingElseIsRefused) {
  ASSERT_TRUE(load(true, "one").has_value());
  const std::filesystem::path one = files().at(0);
  ASSERT_TRUE(load(true, "another").has_value());
  for (const auto& path : files()) {
    if (path != one) std::filesystem::rename(path, one);
  }
  ::testing::internal::CaptureStderr();
  const auto loaded = load(true, "one");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("of another checkpoint"));
  ASSERT_TRUE(loaded.has_value());
  EXPECT_FALSE(loaded->cache_file.has_value());
}

TEST_F(WeightCacheTest, ADirectoryThatCannotBeWrittenCostsOnlyTheCache) {
  std::ofstream(directory_) << "a file where the folder should be";
  ::testing::internal::CaptureStderr();
  const auto loaded = load();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("no weight cache is written"));
  ASSERT_TRUE(loaded.has_value()) << loaded.error().message;
}

TEST_F(WeightCacheTest, TheIdentityFollowsTheFiles) {
  std::filesystem::create_directories(directory_);
  const auto identity = [&] { return checkpoint_identity(directory_).value(); };
  const std::string empty = identity();
  std::ofstream(directory_ / "model.safetensors") << "abc";
  const std::string small = identity();
  std::ofstream(directory_ / "model.safetensors") << "abcd";
  const std::string large = identity();
  std::ofstream(directory_ / "notes.txt") << "not a part of the checkpoint";
  EXPECT_NE(empty, small);
  EXPECT_NE(small, large);
  EXPECT_EQ(large, identity());
  EXPECT_FALSE(checkpoint_identity(directory_ / "missing").has_value());
}

}  // namespace
}  // namespace nibble
