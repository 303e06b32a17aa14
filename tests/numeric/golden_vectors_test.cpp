// tests/golden/nvfp4_vectors.json: 61 cases from an independent program (pure Python, exact
// rational search), floats as bit patterns. Every case has to give its bits, or be refused where it
// says so.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/numeric/nvfp4_exact_dot.h"
#include "nibble/numeric/nvfp4_swizzle.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

float float_of(const Json& hex) {
  return std::bit_cast<float>(
      static_cast<uint32_t>(std::stoul(hex.get<std::string>(), nullptr, 16)));
}

std::vector<float> floats_of(const Json& list) {
  std::vector<float> values;
  for (const Json& hex : list) values.push_back(float_of(hex));
  return values;
}

std::string hex_of(float value) { return fmt::format("0x{:08x}", std::bit_cast<uint32_t>(value)); }

std::string hex_of(std::span<const uint8_t> bytes) {
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::vector<uint8_t> bytes_of(const Json& hex) {
  const auto text = hex.get<std::string>();
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<uint8_t>(std::stoul(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::string fnv1a64(std::span<const uint8_t> bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

template <typename T>
std::span<const uint8_t> as_uint8(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

Result<Json> run_block(const Json& in) {
  const auto x = floats_of(in["x"]);
  const float global_scale = NIBBLE_TRY(nvfp4_global_scale(float_of(in["tensor_amax"])));
  const auto block = NIBBLE_TRY(quantize_nvfp4_block(
      std::span<const float, kNvfp4BlockSize>(x.data(), kNvfp4BlockSize), global_scale));
  std::vector<float> back(kNvfp4BlockSize);
  NIBBLE_TRY(dequantize_nvfp4_rows(block.packed.data(), &block.scale, global_scale, 1,
                                   kNvfp4BlockSize, back.data()));
  Json dequant = Json::array();
  for (const float v : back) dequant.push_back(hex_of(v));
  return Json{{"weight_scale_2", hex_of(global_scale)},
              {"weight_scale", block.scale},
              {"packed", hex_of(block.packed)},
              {"dequant", dequant}};
}

Result<Json> run_tensor(const Json& in) {
  std::vector<float> values;
  for (const Json& row : in["rows"]) {
    for (const float v : floats_of(row)) values.push_back(v);
  }
  const auto rows = static_cast<int64_t>(in["rows"].size());
  const auto cols = static_cast<int64_t>(in["rows"][0].size());
  Nvfp4Mode mode = Nvfp4Mode::kMax;
  if (in["mode"] == "4over6") mode = Nvfp4Mode::kFourOverSix;
  if (in["mode"] == "mse") mode = Nvfp4Mode::kMse;
  const auto tensor = NIBBLE_TRY(quantize_nvfp4(values, rows, cols, mode));
  Json weight = Json::array();
  Json weight_scale = Json::array();
  for (int64_t r = 0; r < rows; ++r) {
    weight.push_back(hex_of({tensor.packed.data() + r * cols / 2, static_cast<size_t>(cols / 2)}));
    weight_scale.push_back(
        hex_of({tensor.block_scales.data() + r * cols / 16, static_cast<size_t>(cols / 16)}));
  }
  return Json{{"weight_scale_2", hex_of(tensor.global_scale)},
              {"weight", weight},
              {"weight_scale", weight_scale}};
}

Result<Json> run_dequant(const Json& in) {
  std::vector<uint8_t> packed;
  std::vector<uint8_t> scales;
  for (const Json& row : in["weight"]) {
    for (const uint8_t b : bytes_of(row)) packed.push_back(b);
  }
  for (const Json& row : in["weight_scale"]) {
    for (const uint8_t b : bytes_of(row)) scales.push_back(b);
  }
  const auto rows = static_cast<int64_t>(in["weight"].size());
  const auto cols = static_cast<int64_t>(2 * packed.size()) / rows;
  std::vector<float> out(2 * packed.size());
  NIBBLE_TRY(dequantize_nvfp4_rows(packed.data(), scales.data(), float_of(in["weight_scale_2"]),
                                   rows, cols, out.data()));
  return Json(out);
}

Result<Json> run_activation_block(const Json& in) {
  const auto x = floats_of(in["x"]);
  const auto block = NIBBLE_TRY(quantize_nvfp4_activation_block(
      std::span<const float, kNvfp4BlockSize>(x.data(), kNvfp4BlockSize),
      float_of(in["input_scale"])));
  return Json{{"scale", block.scale}, {"packed", hex_of(block.packed)}};
}

Result<Json> run_swizzle(const Json& in) {
  const int64_t rows = in["rows"];
  const int64_t cols = in["cols"];
  std::vector<uint8_t> scales;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      scales.push_back(static_cast<uint8_t>((5 * r + 3 * c) % 127));
  }
  const auto swizzled = swizzle_nvfp4_scales(scales, rows, cols);
  EXPECT_EQ(unswizzle_nvfp4_scales(swizzled, rows, cols), scales);
  return Json{{"size", swizzled.size()},
              {"offset_of_200_7", nvfp4_swizzled_offset(200, 7, cols)},
              {"fnv1a64", fnv1a64(swizzled)}};
}

Result<Json> run_fp8_block(const Json& in) {
  const int64_t rows = in["rows"];
  const int64_t cols = in["cols"];
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      codes.push_back(static_cast<uint8_t>((7 * i + 13 * j) % 127 | ((i + j) % 2 == 1 ? 0x80 : 0)));
    }
  }
  std::vector<float> scales;
  for (const Json& row : in["scale_inv"]) {
    for (const float v : floats_of(row)) scales.push_back(v);
  }
  std::vector<uint16_t> out(codes.size());
  NIBBLE_TRY(
      dequantize_fp8_block_to_bf16({codes.data(), scales.data(), rows, cols}, 0, rows, out.data()));
  Json first8 = Json::array();
  for (size_t i = 0; i < 8; ++i) first8.push_back(hex_of(bf16_to_float(out[i])));
  return Json{{"fnv1a64", fnv1a64(as_uint8(out))},
              {"first8", first8},
              {"last", hex_of(bf16_to_float(out.back()))}};
}

Result<Json> run_exact_dot(const Json& in) {
  const auto a = bytes_of(in["a_packed"]);
  const auto w = bytes_of(in["w_packed"]);
  const auto a_scales = bytes_of(in["a_scale"]);
  const auto w_scales = bytes_of(in["w_scale"]);
  Json block_int = Json::array();
  for (size_t i = 0; i < a.size(); i += 8) {
    block_int.push_back(nvfp4_block_int_dot(a.data() + i, w.data() + i));
  }
  return Json{{"n", nvfp4_exact_dot(a.data(), a_scales.data(), w.data(), w_scales.data(),
                                    static_cast<int64_t>(2 * a.size()))},
              {"block_int", block_int}};
}

Result<Json> run_vector(const std::string& op, const Json& in) {
  if (op == "e2m1_encode") {
    const uint8_t code = NIBBLE_TRY(checked_float_to_e2m1(float_of(in["x"])));
    return Json{{"code", code}};
  }
  if (op == "e4m3_encode") return Json{{"code", float_to_e4m3(float_of(in["x"]))}};
  if (op == "e4m3_decode_all") {
    const std::vector<float> values(kE4m3Values, kE4m3Values + 0x7f);
    return Json{{"fnv1a64", fnv1a64(as_uint8(values))}};
  }
  if (op == "nvfp4_block") return run_block(in);
  if (op == "nvfp4_tensor") return run_tensor(in);
  if (op == "nvfp4_dequant") return run_dequant(in);
  if (op == "nvfp4_act_block") return run_activation_block(in);
  if (op == "swizzle_128x4") return run_swizzle(in);
  if (op == "fp8_block_dequant") return run_fp8_block(in);
  if (op == "exact_dot") return run_exact_dot(in);
  ADD_FAILURE() << "no test for operation " << op;
  return Json();
}

TEST(Nvfp4Vectors, EveryVectorGivesItsBitsOrIsRefused) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/nvfp4_vectors.json");
  const Json document = Json::parse(file);
  ASSERT_EQ(document["vectors"].size(), 61u);
  for (const Json& vector : document["vectors"]) {
    SCOPED_TRACE(vector["id"].get<std::string>());
    const auto got = run_vector(vector["op"], vector["in"]);
    if (vector["out"] == "error") {
      EXPECT_FALSE(got.has_value());
    } else if (got) {
      EXPECT_EQ(*got, vector["out"]);
    } else {
      ADD_FAILURE() << got.error().message;
    }
  }
}

}  // namespace
}  // namespace nibble
