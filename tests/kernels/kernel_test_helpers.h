// Matrices, weights and caches for tests of kernels, and how results are compared.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "nibble/kernels/kernels.h"

namespace nibble {

inline constexpr LinearFormat kAllFormats[] = {LinearFormat::kF32, LinearFormat::kBf16,
                                               LinearFormat::kFp8Block, LinearFormat::kNvfp4};
inline constexpr ActivationFormat kAsIs = ActivationFormat::kUnquantized;
inline constexpr ActivationFormat kW4A4 = ActivationFormat::kNvfp4;

// A float matrix with a few elements of NaN after each row, which must survive.
class TestMatrix {
 public:
  // Filled with NaN. `padding`: NaNs after each row; 5 keeps rows off any alignment.
  TestMatrix(int64_t rows, int64_t cols, int64_t padding = 5);
  static TestMatrix random(int64_t rows, int64_t cols, uint32_t seed, float deviation = 1);
  static TestMatrix of(std::vector<std::vector<float>> rows);
  static TestMatrix identity(int64_t size);

  MatrixView view();
  float& at(int64_t row, int64_t col) { return data_[static_cast<size_t>(row * stride_ + col)]; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  std::vector<float> row(int64_t r) const;
  std::vector<float> values() const;
  // Whether the elements between the rows are still NaN.
  bool padding_intact() const;

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t stride_;
  std::vector<float> data_;
};

// A weight in the checkpoint's layout that owns its bytes.
struct TestWeight {
  HostLinear host;
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;

  // Random codes of every kind that the format allows (NaN codes excepted); values of size about
  // 1 / sqrt(cols).
  static TestWeight random(LinearFormat format, int64_t rows, int64_t cols, uint32_t seed);
  // BF16 or F32 from values that fit.
  static TestWeight of(LinearFormat format, const std::vector<std::vector<float>>& rows);
  // The same values as F32.
  TestWeight as_f32() const;
  void bind();  // points host at the vectors
};

// A weight in one backend's memory.
struct PackedWeight {
  Buffer buffer;
  LinearWeight weight;
};
PackedWeight pack_weight(Kernels& kernels, const TestWeight& weight,
                         ActivationFormat activation = kAsIs);

struct PackedMlaUp {
  Buffer buffer;
  MlaUpWeight weight;
};
PackedMlaUp pack_mla_up_weight(Kernels& kernels, const TestWeight& kv_b_proj,
                               const MlaShape& shape);

struct TestMlp {
  TestWeight gate;
  TestWeight up;
  TestWeight down;
  static TestMlp random(LinearFormat format, int64_t hidden, int64_t intermediate, uint32_t seed);
};
struct PackedMlp {
  PackedWeight gate;
  PackedWeight up;
  PackedWeight down;
  MlpWeight weight() const { return {gate.weight, up.weight, down.weight}; }
};
PackedMlp pack_mlp(Kernels& kernels, const TestMlp& mlp, ActivationFormat activation = kAsIs);

// sum (got - want)^2 / sum want^2; NaN when got holds any.
double nmse(const std::vector<float>& got, const std::vector<float>& want);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

std::string format_name(LinearFormat format);

// How many planes of BF16 the backend's products make of unquantized activations: 0 where they are
// not done in tiles.
int tile_planes(const std::string& backend, LinearFormat format);

// The nmse that rounding a product's activations may make, 0 where they are not rounded. For BF16
// it is the specification's relative error of 5e-3, squared: 3e-6 on normal data, 1.3e-5 where the
// few outputs of a case happen to cancel. For 16-bit integers, whose 7e-10 become 4e-9 there, 1e-8.
double rounding_bound(const std::string& backend, LinearFormat format);

// x as such products see it: rounded to BF16, or to two BF16 numbers. x for 0 planes.
TestMatrix rounded_to_planes(TestMatrix& x, int planes);

}  // namespace nibble
