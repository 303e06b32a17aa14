#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TestMatrix linear_of(Kernels& kernels, TestMatrix& x, const LinearWeight& weight) {
  TestMatrix out(x.rows(), weight.rows);
  kernels.linear(x.view(), weight, out.view());
  return out;
}

// Leaves NaN wherever a backend keeps scratch memory.
void poison_scratch(Kernels& kernels, int64_t tokens, const LinearWeight& weight) {
  TestMatrix nan(tokens, weight.cols);
  linear_of(kernels, nan, weight);
}

// Worked by hand: the codes 0..15 in column order, block scale 0x38 = 1, global scale 2. Unit
// vectors as tokens read out the columns.
TEST(Linear, DecodesEveryE2m1Code) {
  TestWeight weight;
  weight.host.format = LinearFormat::kNvfp4;
  weight.host.rows = 1;
  weight.host.cols = 16;
  weight.host.global_scale = 2;
  weight.data = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe};
  weight.scales = {0x38};
  const std::vector<float> expected = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedWeight packed = pack_weight(*kernels, weight);
    TestMatrix many = TestMatrix::identity(16);
    EXPECT_THAT(linear_of(*kernels, many, packed.weight).values(),
                testing::Pointwise(testing::Eq(), expected));
    for (int64_t k = 0; k < 16; ++k) {  // one token takes another path
      TestMatrix one = TestMatrix::of({many.row(k)});
      EXPECT_EQ(linear_of(*kernels, one, packed.weight).at(0, 0), expected[static_cast<size_t>(k)]);
    }
  }
}

// E4M3 from its definition: (-1)^s * 2^(e - 7) * (1 + m / 8), or 2^-6 * m / 8 for e = 0.
float e4m3_by_definition(int code) {
  const int exponent = code >> 3 & 15;
  const int fraction = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return static_cast<float>(code & 0x80 ? -magnitude : magnitude);
}

TEST(Linear, DecodesEveryE4m3CodeAndMultipliesByTheBlocksScale) {
  TestWeight weight;
  weight.host.format = LinearFormat::kFp8Block;
  weight.host.rows = 1;
  weight.host.cols = 256;
  for (int code = 0; code < 256; ++code) {
    weight.data.push_back((code & 0x7f) == 0x7f ? uint8_t{0} : static_cast<uint8_t>(code));
  }
  const float scales[2] = {0.5f, 3.0f};  // of columns 0-127 and 128-255
  weight.scales.resize(sizeof(scales));
  std::memcpy(weight.scales.data(), scales, sizeof(scales));
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedWeight packed = pack_weight(*kernels, weight);
    TestMatrix x = TestMatrix::identity(256);
    TestMatrix out = linear_of(*kernels, x, packed.weight);
    for (int code = 0; code < 256; ++code) {
      const float scale = code < 128 ? 0.5f : 3.0f;
      const float want = (code & 0x7f) == 0x7f ? 0 : e4m3_by_definition(code) * scale;
      EXPECT_EQ(out.at(code, 0), want) << code;
    }
  }
}

// Every E4M3 scale that a checkpoint may hold, subnormals and 0 included, times code 1.5.
TEST(Linear, DecodesEveryBlockScale) {
  TestWeight weight;
  weight.host.format = LinearFormat::kNvfp4;
  weight.host.rows = 127;
  weight.host.cols = 16;
  weight.data.assign(127 * 8, 0x33);
  for (int code = 0; code < 127; ++code) weight.scales.push_back(static_cast<uint8_t>(code));
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedWeight packed = pack_weight(*kernels, weight);
    TestMatrix x = TestMatrix::identity(16);
    TestMatrix out = linear_of(*kernels, x, packed.weight);
    for (int code = 0; code < 127; ++code) {
      EXPECT_EQ(out.at(5, code), 1.5f * e4m3_by_definition(code)) << code;
    }
  }
}

// Tensor cores cut the sums of 16 products off instead of rounding them.
double linear_bound(const std::string& backend) { return backend == "cuda" ? 4e-12 : 1e-12; }

// Each block of 16 to multiples of the power of two that lets its largest magnitude fill 15 bits:
// what the cpu backend does where weights are NVFP4.
TestMatrix rounded_to_int16(TestMatrix& x) {
  TestMatrix rounded(x.rows(), x.cols());
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t first = 0; first < x.cols(); first += 16) {
      float amax = 0;
      for (int64_t k = first; k < first + 16; ++k) amax = std::max(amax, std::fabs(x.at(t, k)));
      const int power = amax == 0 ? 0 : std::ilogb(amax) - 14;
      for (int64_t k = first; k < first + 16; ++k) {
        const float steps = std::nearbyint(std::ldexp(x.at(t, k), -power));
        rounded.at(t, k) = std::ldexp(std::clamp(steps, -32768.0f, 32767.0f), power);
      }
    }
  }
  return rounded;
}
// As a cpu backend does for weights of this format.
TestMatrix rounded_by(const std::string& backend, LinearFormat format, TestMatrix& x) {
  if (rounding_bound(backend, format) == 0) return x;
  const int planes = tile_planes(backend, format);
  return planes > 0 ? rounded_to_planes(x, planes) : rounded_to_int16(x);
}

TEST(Linear, EveryBackendAgreesWithTheReference) {
  struct Case {
    int64_t rows, cols;
  };
  ReferenceKernels reference;
  const auto backends = available_backends();
  for (const LinearFormat format : kAllFormats) {
    for (const auto& [rows, cols] :
         {Case{1, 16}, {15, 48}, {16, 128}, {17, 144}, {130, 208}, {300, 1040}}) {
      const TestWeight weight = TestWeight::random(format, rows, cols, 11);
      const PackedWeight plain = pack_weight(reference, weight);
      for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 13, 17, 40, 70}) {
        TestMatrix x = TestMatrix::random(tokens, cols, 12);
        const TestMatrix want = linear_of(reference, x, plain.weight);
        for (const auto& [name, kernels] : backends) {
          SCOPED_TRACE(testing::Message() << name << " " << format_name(format) << " [" << rows
                                          << ", " << cols << "] x " << tokens);
          const PackedWeight packed = pack_weight(*kernels, weight);
          poison_scratch(*kernels, tokens + 1, packed.weight);
          const TestMatrix got = linear_of(*kernels, x, packed.weight);
          TestMatrix rounded = rounded_by(name, format, x);
          const TestMatrix want_rounded = linear_of(reference, rounded, plain.weight);
          EXPECT_LE(nmse(got.values(), want_rounded.values()), linear_bound(name));
          EXPECT_LE(nmse(got.values(), want.values()),
                    std::max(rounding_bound(name, format), linear_bound(name)));
          EXPECT_TRUE(got.padding_intact());
        }
      }
    }
  }
}

// Widths that only unquantized formats and FP8 allow.
TEST(Linear, ColumnsNeedNotBeAMultipleOfSixteen) {
  ReferenceKernels reference;
  const auto backends = available_backends();
  for (const LinearFormat format :
       {LinearFormat::kF32, LinearFormat::kBf16, LinearFormat::kFp8Block}) {
    for (const int64_t cols : {1, 7, 129, 255}) {
      const TestWeight weight = TestWeight::random(format, 33, cols, 13);
      const PackedWeight plain = pack_weight(reference, weight);
      for (const int64_t tokens : {1, 11}) {
        TestMatrix x = TestMatrix::random(tokens, cols, 14);
        const TestMatrix want = linear_of(reference, x, plain.weight);
        for (const auto& [name, kernels] : backends) {
          SCOPED_TRACE(testing::Message() << name << " " << format_name(format) << " " << cols);
          const PackedWeight packed = pack_weight(*kernels, weight);
          poison_scratch(*kernels, tokens, packed.weight);
          TestMatrix rounded = rounded_by(name, format, x);
          const TestMatrix want_rounded = linear_of(reference, rounded, plain.weight);
          const TestMatrix got = linear_of(*kernels, x, packed.weight);
          EXPECT_LE(nmse(got.values(), want_rounded.values()), 1e-12);
          EXPECT_LE(nmse(got.values(), want.values()),
                    std::max(rounding_bound(name, format), 1e-12));
        }
      }
    }
  }
}

// More tokens than one chunk of the cpu backend.
TEST(Linear, AgreesForManyTokens) {
  ReferenceKernels reference;
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 40, 32, 15);
  const PackedWeight plain = pack_weight(reference, weight);
  TestMatrix x = TestMatrix::random(1100, 32, 16);
  const TestMatrix want = linear_of(reference, x, plain.weight);
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    TestMatrix rounded = rounded_by(name, LinearFormat::kNvfp4, x);
    const TestMatrix want_rounded = linear_of(reference, rounded, plain.weight);
    const PackedWeight packed = pack_weight(*kernels, weight);
    const TestMatrix got = linear_of(*kernels, x, packed.weight);
    EXPECT_LE(nmse(got.values(), want_rounded.values()), linear_bound(name));
    EXPECT_LE(nmse(got.values(), want.values()),
              std::max(rounding_bound(name, LinearFormat::kNvfp4), 1e-12));
  }
}

// W4A8: a block's step is its largest magnitude / 127.
TEST(Linear, Int8ActivationsAreRoundedAndThenExact) {
  ReferenceKernels reference;
  for (const int64_t cols : {16, 208, 1040}) {
    const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 130, cols, 11);
    const PackedWeight plain = pack_weight(reference, weight);
    for (const int64_t tokens : {1, 2, 3, 5, 8, 13, 70}) {
      TestMatrix x = TestMatrix::random(tokens, cols, 12);
      for (int64_t k = 0; k < 16; ++k) x.at(0, k) = 0;  // a block without a step
      TestMatrix rounded(tokens, cols);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t first = 0; first < cols; first += 16) {
          float amax = 0;
          for (int64_t k = first; k < first + 16; ++k) amax = std::max(amax, std::fabs(x.at(t, k)));
          for (int64_t k = first; k < first + 16; ++k) {
            rounded.at(t, k) =
                amax == 0 ? 0 : std::nearbyint(x.at(t, k) * (127 / amax)) * (amax / 127);
          }
        }
      }
      const TestMatrix want = linear_of(reference, x, plain.weight);
      const TestMatrix want_rounded = linear_of(reference, rounded, plain.weight);
      for (const Isa isa : kAllIsas) {
        if (isa > detected_isa()) continue;
        if (isa == Isa::kAmx) continue;  // takes BF16 instead, as without kInt8
        CpuKernels kernels(isa, 2, CpuKernels::kMoeScratchFloats, CpuActivations::kInt8);
        SCOPED_TRACE(testing::Message() << kernels.name() << " " << cols << " x " << tokens);
        const PackedWeight packed = pack_weight(kernels, weight);
        TestMatrix got = linear_of(kernels, x, packed.weight);
        if (cols == 16 && tokens == 1) {  // nothing but zeros
          EXPECT_EQ(got.values(), std::vector<float>(130, 0.0f));
          continue;
        }
        EXPECT_LE(nmse(got.values(), want_rounded.values()), 1e-12);
        EXPECT_LE(nmse(got.values(), want.values()), 1e-4);
      }
    }
  }
}

// With tiles, 8-bit activations are the default's BF16, to the bit.
TEST(Linear, TilesTakeBf16ForEightBits) {
  const Isa below = std::min(detected_isa(), Isa::kAvx512Vnni);
  CpuKernels eight(below, 2, CpuKernels::kMoeScratchFloats, CpuActivations::kInt8,
                   &kTileIsaPortable);
  CpuKernels standard(below, 2, CpuKernels::kMoeScratchFloats, CpuActivations::kStandard,
                      &kTileIsaPortable);
  for (const LinearFormat format :
       {LinearFormat::kNvfp4, LinearFormat::kFp8Block, LinearFormat::kBf16}) {
    const TestWeight weight = TestWeight::random(format, 55, 208, 11);
    TestMatrix x = TestMatrix::random(9, 208, 12);
    EXPECT_TRUE(same_bits(linear_of(eight, x, pack_weight(eight, weight).weight).values(),
                          linear_of(standard, x, pack_weight(standard, weight).weight).values()));
  }
}

TEST(Linear, NoTokensAreNoWork) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedWeight packed =
        pack_weight(*kernels, TestWeight::random(LinearFormat::kBf16, 8, 8, 1));
    TestMatrix x(0, 8);
    EXPECT_EQ(linear_of(*kernels, x, packed.weight).values().size(), 0u);
  }
}

// The exact W4A4 sum in integers (spec nvfp4 section 8.5), written out here once more: twice a
// code, and 2^9 times a scale, are integers.
struct ExactW4A4 {
  static int64_t twice_e2m1(int code) {
    constexpr int64_t kTwice[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    return code & 8 ? -kTwice[code & 7] : kTwice[code & 7];
  }
  static int64_t scaled_e4m3(int code) {
    return static_cast<int64_t>(std::ldexp(e4m3_by_definition(code), 9));
  }
  // The nearest code to x, ties to the even one.
  static int nearest_e2m1(float x) {
    constexpr double kValues[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    int best = 0;
    for (int code = 1; code < 8; ++code) {
      const double now = std::fabs(kValues[code] - std::fabs(static_cast<double>(x)));
      const double then = std::fabs(kValues[best] - std::fabs(static_cast<double>(x)));
      if (now < then || (now == then && code % 2 == 0)) best = code;
    }
    return x < 0 ? best | 8 : best;
  }
  static int nearest_e4m3(float x) {
    int best = 0;
    for (int code = 1; code < 127; ++code) {
      const double now =
          std::fabs(static_cast<double>(e4m3_by_definition(code)) - static_cast<double>(x));
      const double then =
          std::fabs(static_cast<double>(e4m3_by_definition(best)) - static_cast<double>(x));
      if (now < then || (now == then && code % 2 == 0)) best = code;
    }
    return best;
  }

  static double dot(const std::vector<float>& x, const TestWeight& weight, int64_t row) {
    const auto cols = static_cast<int64_t>(x.size());
    int64_t sum = 0;
    for (int64_t b = 0; b < cols / 16; ++b) {
      float amax = 0;
      for (int64_t i = 0; i < 16; ++i)
        amax = std::max(amax, std::fabs(x[static_cast<size_t>(16 * b + i)]));
      const int a_scale = nearest_e4m3(std::min(amax / (6 * weight.host.input_scale), 448.0f));
      const float divisor = e4m3_by_definition(a_scale) * weight.host.input_scale;
      int64_t block = 0;
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t k = 16 * b + i;
        const int byte = weight.data[static_cast<size_t>((row * cols + k) / 2)];
        const int w = k % 2 == 0 ? byte & 15 : byte >> 4;
        const int a = divisor == 0 ? 0 : nearest_e2m1(x[static_cast<size_t>(k)] / divisor);
        block += twice_e2m1(a) * twice_e2m1(w);
      }
      const int w_scale = weight.scales[static_cast<size_t>(row * cols / 16 + b)];
      sum += block * scaled_e4m3(a_scale) * scaled_e4m3(w_scale);
    }
    const float alpha = weight.host.input_scale * weight.host.global_scale;
    return std::ldexp(static_cast<double>(sum), -20) * static_cast<double>(alpha);
  }
};

// By hand: twice 1.5 and its like against activations of one block are whole numbers, so the CPU's
// sum is exact whatever the scales: E4M3's subnormals, its largest, and 0.
TEST(Linear, IntegerActivationsMeetEveryBlockScaleExactly) {
  for (const auto& [name, kernels] : cpu_backends(1)) {
    SCOPED_TRACE(name);
    TestWeight weight;
    weight.host.format = LinearFormat::kNvfp4;
    weight.host.rows = 127;
    weight.host.cols = 80;               // a whole group of blocks and a part of one
    weight.data.assign(127 * 40, 0x3d);  // -3, 1.5
    for (int i = 0; i < 127 * 5; ++i) weight.scales.push_back(static_cast<uint8_t>(i / 5));
    const PackedWeight packed = pack_weight(*kernels, weight);
    for (const int64_t tokens : {1, 3, 40}) {
      TestMatrix x(tokens, 80);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t k = 0; k < 80; ++k) x.at(t, k) = static_cast<float>((t + k) % 7 - 3) * 0.125f;
      }
      TestMatrix out = linear_of(*kernels, x, packed.weight);
      for (int64_t t = 0; t < tokens; ++t) {
        float dot = 0;
        for (int64_t k = 0; k < 80; ++k) dot += x.at(t, k) * (k % 2 == 0 ? -3.0f : 1.5f);
        for (int code = 0; code < 127; ++code) {
          ASSERT_EQ(out.at(t, code), dot * e4m3_by_definition(code)) << t << " " << code;
        }
      }
    }
  }
}

TEST(Linear, AnInfiniteActivationSpoilsItsRow) {
  for (const auto& [name, kernels] : cpu_backends(1)) {
    SCOPED_TRACE(name);
    const PackedWeight packed =
        pack_weight(*kernels, TestWeight::random(LinearFormat::kNvfp4, 20, 64, 19));
    TestMatrix x = TestMatrix::random(2, 64, 20);
    x.at(1, 40) = -INFINITY;
    TestMatrix out = linear_of(*kernels, x, packed.weight);
    EXPECT_TRUE(std::isfinite(out.at(0, 3)));
    EXPECT_FALSE(std::isfinite(out.at(1, 3)));
  }
}

// Magnitudes from the smallest to the largest that a block may have.
TEST(Linear, IntegerActivationsKeepTheirPrecisionAtAnyMagnitude) {
  ReferenceKernels reference;
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 33, 160, 19);
  const PackedWeight plain = pack_weight(reference, weight);
  for (const float magnitude : {1e-22f, 1e-6f, 1.0f, 1e6f, 1e22f}) {
    TestMatrix x = TestMatrix::random(3, 160, 20);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t k = 0; k < 160; ++k) x.at(t, k) *= magnitude;
    }
    const TestMatrix want = linear_of(reference, x, plain.weight);
    for (const auto& [name, kernels] : cpu_backends(1)) {
      SCOPED_TRACE(testing::Message() << name << " " << magnitude);
      // Tiles know magnitudes up to 2^64.
      const bool tiles = tile_planes(name, LinearFormat::kNvfp4) > 0;
      if (tiles && (magnitude > 1e18f || magnitude < 1e-18f)) continue;
      const PackedWeight packed = pack_weight(*kernels, weight);
      EXPECT_LE(nmse(linear_of(*kernels, x, packed.weight).values(), want.values()),
                std::max(rounding_bound(name, LinearFormat::kNvfp4), 1e-12));
    }
  }
}

TEST(Linear, QuantizedActivationsMatchAnExactIntegerSum) {
  for (const auto& [name, kernels] : all_backends()) {
    for (const int64_t tokens : {1, 4, 21}) {
      SCOPED_TRACE(testing::Message() << name << " " << tokens);
      const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 37, 416, 17);
      const PackedWeight packed = pack_weight(*kernels, weight, kW4A4);
      TestMatrix x = TestMatrix::random(tokens, 416, 18);
      for (int64_t c = 0; c < 16; ++c) {
        x.at(0, c) = 0;            // a zero block
        x.at(0, 16 + c) *= 100;    // above the calibrated range: saturates
        x.at(0, 32 + c) *= 1e-6f;  // its scale rounds to zero
        x.at(0, 48 + c) = 0.25f * static_cast<float>(c - 8);  // ties between codes
      }
      TestMatrix got = linear_of(*kernels, x, packed.weight);
      std::vector<float> want;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t n = 0; n < 37; ++n) {
          want.push_back(static_cast<float>(ExactW4A4::dot(x.row(t), weight, n)));
        }
      }
      EXPECT_LE(nmse(got.values(), want), 1e-12);
    }
  }
}

TEST(Linear, ANanActivationSpoilsItsRowAndNoOther) {
  for (const auto& [name, kernels] : all_backends()) {
    for (const ActivationFormat activation : {kAsIs, kW4A4}) {
      SCOPED_TRACE(name);
      const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 20, 64, 19);
      const PackedWeight packed = pack_weight(*kernels, weight, activation);
      TestMatrix x = TestMatrix::random(9, 64, 20);
      x.at(4, 33) = NAN;
      TestMatrix out = linear_of(*kernels, x, packed.weight);
      for (int64_t t = 0; t < 9; ++t) EXPECT_EQ(std::isnan(out.at(t, 3)), t == 4) << t;
    }
  }
}

TEST(Linear, ARowHasTheSameBitsInAnyBatchAndWithAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3}) {
    for (const auto& [name, kernels] : cpu_backends(threads)) {
      const auto lone = cpu_backends(1);
      Kernels& single =
          *std::find_if(lone.begin(), lone.end(), [&wanted = name](const TestBackend& b) {
             return b.name == wanted;
           })->kernels;
      for (const LinearFormat format : kAllFormats) {
        for (const ActivationFormat activation : {kAsIs, kW4A4}) {
          if (activation == kW4A4 && format != LinearFormat::kNvfp4) continue;
          SCOPED_TRACE(testing::Message() << name << " " << threads << " " << format_name(format));
          const TestWeight weight = TestWeight::random(format, 150, 304, 21);
          const PackedWeight packed = pack_weight(*kernels, weight, activation);
          TestMatrix x = TestMatrix::random(23, 304, 22);
          std::vector<std::vector<float>> alone;
          for (int64_t t = 0; t < 23; ++t) {
            TestMatrix one = TestMatrix::of({x.row(t)});
            alone.push_back(linear_of(single, one, packed.weight).row(0));
          }
          for (const int64_t tokens : {1, 2, 3, 4, 5, 8, 12, 23}) {
            // The last rows, in reverse order: other neighbours, other places in a tile.
            TestMatrix batch(tokens, 304);
            for (int64_t i = 0; i < tokens; ++i) {
              for (int64_t c = 0; c < 304; ++c) batch.at(i, c) = x.at(22 - i, c);
            }
            const TestMatrix out = linear_of(*kernels, batch, packed.weight);
            for (int64_t i = 0; i < tokens; ++i) {
              EXPECT_TRUE(same_bits(out.row(i), alone[static_cast<size_t>(22 - i)]))
                  << tokens << " tokens, row " << i;
            }
          }
        }
      }
    }
  }
}

// With tiles, a thread that has many groups of outputs does several as one task.
TEST(Linear, ManyOutputsHaveTheSameBitsInAnyTasks) {
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 1100, 560, 27);
  TestMatrix x = TestMatrix::random(50, 560, 28);
  const auto few = cpu_backends(8);
  for (const auto& [name, kernels] : cpu_backends(1)) {
    SCOPED_TRACE(name);
    const PackedWeight packed = pack_weight(*kernels, weight);
    const TestMatrix got = linear_of(*kernels, x, packed.weight);
    Kernels& other = *std::find_if(few.begin(), few.end(), [&wanted = name](const TestBackend& b) {
                        return b.name == wanted;
                      })->kernels;
    EXPECT_TRUE(same_bits(got.values(), linear_of(other, x, packed.weight).values()));
    for (const int64_t t : {0, 31, 49}) {
      TestMatrix one = TestMatrix::of({x.row(t)});
      EXPECT_TRUE(same_bits(linear_of(*kernels, one, packed.weight).row(0), got.row(t))) << t;
    }
  }
}

TEST(Linear, IsExactlyLinearInPowersOfTwoOfTheGlobalScale) {
  for (const auto& [name, kernels] : all_backends()) {
    for (const ActivationFormat activation : {kAsIs, kW4A4}) {
      SCOPED_TRACE(name);
      TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 24, 160, 23);
      TestMatrix x = TestMatrix::random(7, 160, 24);
      const PackedWeight packed = pack_weight(*kernels, weight, activation);
      std::vector<float> want = linear_of(*kernels, x, packed.weight).values();
      for (float& v : want) v *= 0.125f;
      weight.host.global_scale *= 0.125f;
      const PackedWeight smaller = pack_weight(*kernels, weight, activation);
      EXPECT_TRUE(same_bits(linear_of(*kernels, x, smaller.weight).values(), want));
    }
  }
}

// One rounding of each product and sum, in rising order of k: the promise that makes batches and
// machines with the same instruction set agree.
TEST(Linear, VectorBackendsAddInRisingOrderWithOneRoundingEach) {
  const TestWeight weight = TestWeight::random(LinearFormat::kF32, 18, 777, 25);
  TestMatrix x = TestMatrix::random(9, 777, 26);
  const auto* w = reinterpret_cast<const float*>(weight.data.data());
  for (const auto& [name, kernels] : available_backends()) {
    if (!name.starts_with("cpu") || name == "cpu portable") continue;
    SCOPED_TRACE(name);
    const PackedWeight packed = pack_weight(*kernels, weight);
    TestMatrix out = linear_of(*kernels, x, packed.weight);
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t n = 0; n < 18; ++n) {
        float sum = 0;
        for (int64_t k = 0; k < 777; ++k) sum = std::fma(x.at(t, k), w[n * 777 + k], sum);
        EXPECT_EQ(out.at(t, n), sum);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
