#include "nibble/checkpoint/linear_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::patch_tensor;
using testing::TempFolder;
using testing::write_tensors;

std::string float_bytes(float value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// A folder with the module "p" in NVFP4, [4, 32], all codes 0x11, scales 1.0, globals 0.5 and 0.25.
class Nvfp4Module {
 public:
  explicit Nvfp4Module(std::vector<TensorInfo> tensors = default_tensors()) {
    write_tensors(file(), tensors, 0x11);
    for (const TensorInfo& info : tensors) {
      if (info.name == "p.weight_scale") {
        patch_tensor(file(), info.name, 0,
                     std::string(static_cast<size_t>(info.shape.num_elements()), 0x38));
      }
      if (info.name == "p.weight_scale_2" && info.dtype == DType::kF32) {
        patch_tensor(file(), info.name, 0, float_bytes(0.5F));
      }
      if (info.name == "p.input_scale" && info.dtype == DType::kF32) {
        patch_tensor(file(), info.name, 0, float_bytes(0.25F));
      }
    }
  }
  static std::vector<TensorInfo> default_tensors() {
    return {{"p.weight", DType::kU8, {4, 16}, {}},
            {"p.weight_scale", DType::kF8E4m3, {4, 2}, {}},
            {"p.weight_scale_2", DType::kF32, {}, {}},
            {"p.input_scale", DType::kF32, {1}, {}}};
  }
  std::filesystem::path file() const { return folder_ / "model.safetensors"; }
  Result<LinearTensors> read(int64_t rows = 4, int64_t cols = 32) {
    source_ = *SafetensorsSource::open(folder_.path());
    return read_linear(*source_, "p", rows, cols);
  }
  std::string read_error(int64_t rows = 4, int64_t cols = 32) {
    const auto linear = read(rows, cols);
    return linear ? "read" : linear.error().message;
  }

 private:
  TempFolder folder_;
  std::unique_ptr<SafetensorsSource> source_;
};

TEST(LinearTensors, ReadsNvfp4WithItsScales) {
  Nvfp4Module module;
  const auto linear = module.read();
  ASSERT_TRUE(linear) << linear.error().message;
  EXPECT_EQ(linear->format, WeightFormat::kNvfp4);
  EXPECT_EQ(linear->rows, 4);
  EXPECT_EQ(linear->cols, 32);
  EXPECT_EQ(linear->weight.bytes.size(), 64U);
  EXPECT_EQ(linear->scales.bytes.size(), 8U);
  EXPECT_EQ(linear->global_scale, 0.5F);
  EXPECT_EQ(linear->input_scale, 0.25F);
}

TEST(LinearTensors, TakesBf16ScalarsAndAMissingInputScale) {
  auto tensors = Nvfp4Module::default_tensors();
  tensors[2] = {"p.weight_scale_2", DType::kBf16, {1}, {}};
  tensors.pop_back();
  Nvfp4Module module(tensors);
  patch_tensor(module.file(), "p.weight_scale_2", 0, std::string("\x80\x3f", 2));  // 1.0
  const auto linear = module.read();
  ASSERT_TRUE(linear) << linear.error().message;
  EXPECT_EQ(linear->global_scale, 1.0F);
  EXPECT_FALSE(linear->input_scale);
}

TEST(LinearTensors, RefusesBlockScalesThatAreNanOrNegative) {
  for (const int code : {0x7f, 0xff, 0x80, 0xb8}) {
    Nvfp4Module module;
    patch_tensor(module.file(), "p.weight_scale", 5, std::string(1, static_cast<char>(code)));
    EXPECT_THAT(module.read_error(),
                HasSubstr("p.weight_scale in model.safetensors holds the code 0x"));
    EXPECT_THAT(module.read_error(), HasSubstr("at row 2, column 1"));
  }
  Nvfp4Module module;
  patch_tensor(module.file(), "p.weight_scale", 5, std::string("\x00\x7e", 2));  // both are legal
  EXPECT_EQ(module.read_error(), "read");
}

TEST(LinearTensors, RefusesGlobalScalesThatAreNotPositiveAndFinite) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(), 0.0F, -0.0F, -1.0F};
  for (const char* name : {"p.weight_scale_2", "p.input_scale"}) {
    for (const float value : bad) {
      Nvfp4Module module;
      patch_tensor(module.file(), name, 0, float_bytes(value));
      EXPECT_THAT(module.read_error(), HasSubstr(std::string(name) + " in model.safetensors is "));
      EXPECT_THAT(module.read_error(), HasSubstr("expected a positive finite number"));
    }
  }
}

TEST(LinearTensors, RefusesWrongShapesWithBoth) {
  auto tensors = Nvfp4Module::default_tensors();
  tensors[1].shape = {4, 1};
  EXPECT_EQ(Nvfp4Module(tensors).read_error(),
            "p.weight_scale in model.safetensors has shape [4, 1], expected [4, 2]");
  EXPECT_EQ(Nvfp4Module().read_error(8, 32),
            "p.weight in model.safetensors has shape [4, 16], expected [8, 16]");
  EXPECT_THAT(Nvfp4Module().read_error(4, 24), HasSubstr("must be a multiple of 16"));
  tensors = Nvfp4Module::default_tensors();
  tensors[2].shape = {2};
  EXPECT_THAT(Nvfp4Module(tensors).read_error(), HasSubstr("has shape [2], expected [] or [1]"));
  tensors[2] = {"p.weight_scale_2", DType::kF64, {}, {}};
  EXPECT_THAT(Nvfp4Module(tensors).read_error(), HasSubstr("has dtype F64, expected F32 or BF16"));
  tensors = Nvfp4Module::default_tensors();
  tensors[1].dtype = DType::kU8;
  EXPECT_THAT(Nvfp4Module(tensors).read_error(), HasSubstr("has dtype U8, expected F8_E4M3"));
  tensors = Nvfp4Module::default_tensors();
  tensors.erase(tensors.begin() + 2);
  EXPECT_EQ(Nvfp4Module(tensors).read_error(), "the checkpoint has no tensor p.weight_scale_2");
}

TEST(LinearTensors, RefusesLayoutsItDoesNotReadByName) {
  auto tensors = Nvfp4Module::default_tensors();
  tensors.push_back({"p.pre_quant_scale", DType::kF32, {32}, {}});
  EXPECT_THAT(Nvfp4Module(tensors).read_error(), HasSubstr("p.pre_quant_scale (AWQ) is not"));
  EXPECT_THAT(Nvfp4Module({{"p.weight", DType::kU8, {4, 16}, {}}}).read_error(),
              HasSubstr("is U8, but there is no p.weight_scale"));
  EXPECT_THAT(Nvfp4Module({{"p.weight_packed", DType::kU8, {4, 16}, {}}}).read_error(),
              HasSubstr("compressed-tensors"));
  EXPECT_THAT(Nvfp4Module({{"p.weight", DType::kF8E4m3, {4, 32}, {}}}).read_error(),
              HasSubstr("without p.weight_scale_inv"));
  EXPECT_THAT(Nvfp4Module({{"p.weight", DType::kF16, {4, 32}, {}}}).read_error(),
              HasSubstr("has dtype F16; supported are F32, BF16"));
  EXPECT_EQ(Nvfp4Module({{"q.weight", DType::kF16, {4, 32}, {}}}).read_error(),
            "the checkpoint has no tensor p.weight");
}

// 130 x 200: both dimensions end in a partial block.
class Fp8Module {
 public:
  Fp8Module() {
    write_tensors(file(), {{"p.weight", DType::kF8E4m3, {130, 200}, {}},
                           {"p.weight_scale_inv", DType::kF32, {2, 2}, {}}});
    for (size_t i = 0; i < 4; ++i) {
      patch_tensor(file(), "p.weight_scale_inv", 4 * i, float_bytes(0.5F));
    }
  }
  std::filesystem::path file() const { return folder_ / "model.safetensors"; }
  std::string read_error() const {
    const auto source = *SafetensorsSource::open(folder_.path());
    const auto linear = read_linear(*source, "p", 130, 200);
    return linear ? std::string(weight_format_name(linear->format)) : linear.error().message;
  }

 private:
  TempFolder folder_;
};

TEST(LinearTensors, ReadsFp8AndRefusesItsNans) {
  const Fp8Module module;
  EXPECT_EQ(module.read_error(), "FP8 128x128");
  patch_tensor(module.file(), "p.weight", 129 * 200 + 199, "\xff");
  EXPECT_EQ(module.read_error(),
            "p.weight in model.safetensors holds the code 0xff (NaN) at row 129, column 199");
  patch_tensor(module.file(), "p.weight", 129 * 200 + 199, "\xfe");  // -448
  EXPECT_EQ(module.read_error(), "FP8 128x128");
  patch_tensor(module.file(), "p.weight", 4097, "\x7f");
  EXPECT_THAT(module.read_error(), HasSubstr("at row 20, column 97"));
}

TEST(LinearTensors, RefusesFp8ScalesThatAreNotPositiveAndFinite) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), 0.0F, -0.5F,
                            std::numeric_limits<float>::infinity()}) {
    const Fp8Module module;
    patch_tensor(module.file(), "p.weight_scale_inv", 8, float_bytes(value));
    EXPECT_THAT(module.read_error(), HasSubstr("p.weight_scale_inv in model.safetensors holds "));
    EXPECT_THAT(module.read_error(), HasSubstr("at row 1, column 0"));
  }
}

TEST(LinearTensors, ReadsUnquantizedWeights) {
  for (const auto& [dtype, format] :
       {std::pair(DType::kF32, WeightFormat::kF32), std::pair(DType::kBf16, WeightFormat::kBf16)}) {
    Nvfp4Module module({{"p.weight", dtype, {4, 32}, {}}});
    const auto linear = module.read();
    ASSERT_TRUE(linear) << linear.error().message;
    EXPECT_EQ(linear->format, format);
    EXPECT_TRUE(linear->scales.bytes.empty());
  }
}

}  // namespace
}  // namespace nibble
