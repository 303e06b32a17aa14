#include "tests/kernels/kernel_test_helpers.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"

namespace nibble {
namespace {

void append(std::vector<uint8_t>& bytes, const void* data, size_t size) {
  const auto* const source = static_cast<const uint8_t*>(data);
  bytes.insert(bytes.end(), source, source + size);
}

}  // namespace

TestMatrix::TestMatrix(int64_t rows, int64_t cols, int64_t padding)
    : rows_(rows),
      cols_(cols),
      stride_(cols + padding),
      data_(static_cast<size_t>(rows * stride_), std::numeric_limits<float>::quiet_NaN()) {}

TestMatrix TestMatrix::random(int64_t rows, int64_t cols, uint32_t seed, float deviation) {
  TestMatrix matrix(rows, cols);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) matrix.at(r, c) = normal(rng);
  }
  return matrix;
}

TestMatrix TestMatrix::of(std::vector<std::vector<float>> rows) {
  TestMatrix matrix(static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size()));
  for (int64_t r = 0; r < matrix.rows_; ++r) {
    for (int64_t c = 0; c < matrix.cols_; ++c) {
      matrix.at(r, c) = rows[static_cast<size_t>(r)][static_cast<size_t>(c)];
    }
  }
  return matrix;
}

TestMatrix TestMatrix::identity(int64_t size) {
  TestMatrix matrix(size, size);
  for (int64_t r = 0; r < size; ++r) {
    for (int64_t c = 0; c < size; ++c) matrix.at(r, c) = r == c ? 1.0f : 0.0f;
  }
  return matrix;
}

MatrixView TestMatrix::view() { return {data_.data(), DType::kF32, rows_, cols_, stride_}; }

std::vector<float> TestMatrix::row(int64_t r) const {
  const auto first = data_.begin() + r * stride_;
  return {first, first + cols_};
}

std::vector<float> TestMatrix::values() const {
  std::vector<float> values;
  for (int64_t r = 0; r < rows_; ++r) {
    const std::vector<float> one = row(r);
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

bool TestMatrix::padding_intact() const {
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t c = cols_; c < stride_; ++c) {
      if (!std::isnan(data_[static_cast<size_t>(r * stride_ + c)])) return false;
    }
  }
  return true;
}

void TestWeight::bind() {
  host.data = data.data();
  host.scales = scales.empty() ? nullptr : scales.data();
}

TestWeight TestWeight::random(LinearFormat format, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 rng(seed);
  const float size = 1 / std::sqrt(static_cast<float>(cols));
  std::normal_distribution<float> normal(0, size);
  TestWeight weight;
  weight.host.format = format;
  weight.host.rows = rows;
  weight.host.cols = cols;
  switch (format) {
    case LinearFormat::kF32:
      for (int64_t i = 0; i < rows * cols; ++i) {
        const float value = normal(rng);
        append(weight.data, &value, sizeof(value));
      }
      break;
    case LinearFormat::kBf16:
      for (int64_t i = 0; i < rows * cols; ++i) {
        const uint16_t value = float_to_bf16(normal(rng));
        append(weight.data, &value, sizeof(value));
      }
      break;
    case LinearFormat::kFp8Block: {
      for (int64_t i = 0; i < rows * cols; ++i) {
        const auto code = static_cast<uint8_t>(rng());
        weight.data.push_back((code & 0x7f) == 0x7f ? uint8_t{0x7e} : code);
      }
      const int64_t blocks = (rows + 127) / 128 * ((cols + 127) / 128);
      for (int64_t i = 0; i < blocks; ++i) {
        const float scale = size / 200 * (0.5f + static_cast<float>(rng() % 1000) / 1000);
        append(weight.scales, &scale, sizeof(scale));
      }
      break;
    }
    case LinearFormat::kNvfp4:
      for (int64_t i = 0; i < rows * cols / 2; ++i) {
        weight.data.push_back(static_cast<uint8_t>(rng()));
      }
      for (int64_t i = 0; i < rows * cols / 16; ++i) {
        weight.scales.push_back(static_cast<uint8_t>(rng() % 0x7f));
      }
      weight.host.global_scale = size / 300;
      weight.host.input_scale = 4.0f / 2688;
      break;
  }
  weight.bind();
  return weight;
}

TestWeight TestWeight::of(LinearFormat format, const std::vector<std::vector<float>>& rows) {
  NIBBLE_CHECK(format == LinearFormat::kF32 || format == LinearFormat::kBf16);
  TestWeight weight;
  weight.host.format = format;
  weight.host.rows = static_cast<int64_t>(rows.size());
  weight.host.cols = static_cast<int64_t>(rows[0].size());
  for (const std::vector<float>& row : rows) {
    for (const float value : row) {
      const uint16_t half = float_to_bf16(value);
      if (format == LinearFormat::kF32) {
        append(weight.data, &value, sizeof(value));
      } else {
        append(weight.data, &half, sizeof(half));
      }
    }
  }
  weight.bind();
  return weight;
}

TestWeight TestWeight::as_f32() const {
  ReferenceKernels reference;
  const PackedWeight packed = pack_weight(reference, *this);
  TestWeight result;
  result.host.format = LinearFormat::kF32;
  result.host.rows = host.rows;
  result.host.cols = host.cols;
  result.data.resize(static_cast<size_t>(host.rows * host.cols) * sizeof(float));
  std::vector<float> values(static_cast<size_t>(host.rows * host.cols));
  ReferenceKernels::dequantize(packed.weight, values.data());
  std::memcpy(result.data.data(), values.data(), result.data.size());
  result.bind();
  return result;
}

PackedWeight pack_weight(Kernels& kernels, const TestWeight& weight, ActivationFormat activation) {
  HostLinear host = weight.host;  // the vectors may have moved since bind()
  host.data = weight.data.data();
  host.scales = weight.scales.empty() ? nullptr : weight.scales.data();
  PackedWeight packed;
  const size_t bytes = kernels.packed_bytes(host.format, host.rows, host.cols);
  packed.buffer = kernels.device().allocate(bytes).value();
  std::memset(packed.buffer.data(), 0xff, bytes);
  packed.weight = kernels.pack(host, activation, packed.buffer.data()).value();
  return packed;
}

PackedMlaUp pack_mla_up_weight(Kernels& kernels, const TestWeight& kv_b_proj,
                               const MlaShape& shape) {
  HostLinear host = kv_b_proj.host;
  host.data = kv_b_proj.data.data();
  host.scales = kv_b_proj.scales.empty() ? nullptr : kv_b_proj.scales.data();
  PackedMlaUp packed;
  const size_t bytes = kernels.packed_mla_up_bytes(host.format, shape);
  packed.buffer = kernels.device().allocate(bytes).value();
  std::memset(packed.buffer.data(), 0xff, bytes);
  packed.weight = kernels.pack_mla_up(host, shape, packed.buffer.data()).value();
  return packed;
}

TestMlp TestMlp::random(LinearFormat format, int64_t hidden, int64_t intermediate, uint32_t seed) {
  return {TestWeight::random(format, intermediate, hidden, seed),
          TestWeight::random(format, intermediate, hidden, seed + 1),
          TestWeight::random(format, hidden, intermediate, seed + 2)};
}

PackedMlp pack_mlp(Kernels& kernels, const TestMlp& mlp, ActivationFormat activation) {
  return {pack_weight(kernels, mlp.gate, activation), pack_weight(kernels, mlp.up, activation),
          pack_weight(kernels, mlp.down, activation)};
}

double nmse(const std::vector<float>& got, const std::vector<float>& want) {
  NIBBLE_CHECK(got.size() == want.size());
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    error += difference * difference;
    size += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return error / size;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string format_name(LinearFormat format) {
  switch (format) {
    case LinearFormat::kF32:
      return "F32";
    case LinearFormat::kBf16:
      return "BF16";
    case LinearFormat::kFp8Block:
      return "FP8";
    case LinearFormat::kNvfp4:
      return "NVFP4";
  }
  return "?";
}

int tile_planes(const std::string& backend, LinearFormat format) {
  const bool tiles = backend.starts_with("cpu amx") || backend.find("tiles given") != backend.npos;
  if (!tiles || format == LinearFormat::kF32) return 0;
  if (!backend.ends_with("exact")) return 1;
  return format == LinearFormat::kNvfp4 ? 2 : 0;
}

double rounding_bound(const std::string& backend, LinearFormat format) {
  if (tile_planes(backend, format) == 1) return 2.5e-5;
  return format == LinearFormat::kNvfp4 && backend.starts_with("cpu ") ? 1e-8 : 0;
}

TestMatrix rounded_to_planes(TestMatrix& x, int planes) {
  TestMatrix rounded = x;
  for (int64_t t = 0; t < x.rows() && planes > 0; ++t) {
    for (int64_t k = 0; k < x.cols(); ++k) {
      const float first = round_to_bf16(x.at(t, k));
      rounded.at(t, k) = planes == 1 ? first : first + round_to_bf16(x.at(t, k) - first);
    }
  }
  return rounded;
}

}  // namespace nibble
