// The tile products by themselves: the plain loops against sums in binary64, AMX against the loops.
#include "nibble/kernels/cpu/tile_isa.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

// One product of two parts of a matrix with everything around its results and scratch poisoned.
struct TileCase {
  LinearFormat format;
  int64_t rows;
  int64_t cols;
  int64_t tokens;
  int planes;
};

struct TileProduct {
  TileProduct(const TileIsa& isa, const TileCase& c)
      : kernels(std::min(detected_isa(), Isa::kAvx512Vnni), 1),
        source(TestWeight::random(c.format, c.rows, c.cols, 31)),
        packed(pack_weight(kernels, source)),
        x(random_floats(static_cast<size_t>(c.tokens * c.cols), 32)) {
    constexpr float kPoison = 1e30f;
    const int64_t rows = c.tokens * c.planes;
    const int64_t slices = slices_of(c.cols);
    // Nothing may be read past the last record: it ends where the memory does.
    const auto record_bytes = static_cast<size_t>(slices * rows * kTileRecordBytes);
    Buffer records = kernels.device().allocate(record_bytes).value();
    std::memset(records.data(), 0x7f, record_bytes);
    for (int64_t s = 0; s < slices; ++s) {
      for (int64_t t = 0; t < c.tokens; ++t) {
        isa.quantize(x.data() + t * c.cols + s * kSliceCols,
                     std::min<int64_t>(kSliceCols, c.cols - s * kSliceCols), c.planes, t, c.tokens,
                     records.as<uint8_t>() + s * rows * kTileRecordBytes);
      }
    }
    record_values.assign(records.as<uint8_t>(), records.as<uint8_t>() + record_bytes);
    const int64_t panels = panels_of(c.rows);
    const int64_t c_row = panels * kPanelRows + 3;
    out.assign(static_cast<size_t>(c.tokens * c_row), kPoison);
    const auto scratch_floats = static_cast<size_t>(tile_scratch_floats(c.tokens, c.planes));
    Buffer scratch = kernels.device().allocate((scratch_floats + 16) * sizeof(float)).value();
    for (size_t i = 0; i < scratch_floats + 16; ++i) scratch.as<float>()[i] = NAN;
    const RowFormat format = c.planes == 1 ? RowFormat::kBf16 : RowFormat::kBf16Split;
    const PanelMatrix matrix = panel_matrix(packed.weight, format);
    const int64_t first = panels > 2 ? panels / 2 + 1 : panels;
    const PanelPart parts[2] = {{matrix, 0, first, out.data()},
                                {matrix, first, panels - first, out.data() + first * kPanelRows}};
    isa.multiply(parts, first < panels ? 2 : 1, records.data(), c.tokens, c.planes, c_row,
                 kPanelRows, scratch.as<float>());
    for (size_t i = scratch_floats; i < scratch_floats + 16; ++i) {
      EXPECT_TRUE(std::isnan(scratch.as<float>()[i])) << "scratch was written past its end";
    }
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t i = panels * kPanelRows; i < c_row; ++i) {
        EXPECT_EQ(out[static_cast<size_t>(t * c_row + i)], kPoison);
      }
    }
    stride = c_row;
  }

  CpuKernels kernels;
  TestWeight source;
  PackedWeight packed;
  std::vector<float> x;
  std::vector<uint8_t> record_values;
  std::vector<float> out;
  int64_t stride = 0;
};

// Rows and columns that are whole tiles and not, one block of steps and more, every path of rows.
std::vector<TileCase> tile_cases() {
  std::vector<TileCase> cases;
  for (const LinearFormat format : {LinearFormat::kNvfp4, LinearFormat::kBf16}) {
    for (const int planes : {1, 2}) {
      for (const int64_t tokens : {1, 7, 16, 17, 32, 33, 48, 70}) {
        cases.push_back({format, 55, 592, tokens, planes});
      }
      cases.push_back({format, 256, 48, 9, planes});
      cases.push_back({format, 16, 1040, 100, planes});
      cases.push_back({format, 1, 16, 3, planes});
      cases.push_back({format, 130, 32, 65, planes});
    }
    if (format == LinearFormat::kBf16) cases.push_back({format, 40, 77, 40, 2});
  }
  return cases;
}

TEST(TileIsa, PlainLoopsComputeTheProductOfRoundedActivations) {
  ReferenceKernels reference;
  for (const TileCase& c : tile_cases()) {
    SCOPED_TRACE(testing::Message() << format_name(c.format) << " [" << c.rows << ", " << c.cols
                                    << "] x " << c.tokens << " planes " << c.planes);
    const TileProduct product(kTileIsaPortable, c);
    const PackedWeight plain = pack_weight(reference, product.source);
    TestMatrix x(c.tokens, c.cols);
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t k = 0; k < c.cols; ++k) {
        x.at(t, k) = product.x[static_cast<size_t>(t * c.cols + k)];
      }
    }
    TestMatrix rounded = rounded_to_planes(x, c.planes);
    TestMatrix want(c.tokens, c.rows);
    reference.linear(rounded.view(), plain.weight, want.view());
    const float factor = c.format == LinearFormat::kNvfp4
                             ? kTileNvfp4Factor * product.source.host.global_scale
                             : kTileBf16Factor;
    std::vector<float> got;
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t r = 0; r < c.rows; ++r) {
        got.push_back(factor * product.out[static_cast<size_t>(t * product.stride + r)]);
      }
    }
    EXPECT_LE(nmse(got, want.values()), 1e-12);
  }
}

TEST(TileIsa, AmxHasTheBitsOfThePlainLoops) {
  if (detected_isa() < Isa::kAmx) GTEST_SKIP() << "no AMX here";
#if defined(__x86_64__)
  for (const TileCase& c : tile_cases()) {
    SCOPED_TRACE(testing::Message() << format_name(c.format) << " [" << c.rows << ", " << c.cols
                                    << "] x " << c.tokens << " planes " << c.planes);
    const TileProduct plain(kTileIsaPortable, c);
    const TileProduct amx(kTileIsaAmx, c);
    EXPECT_EQ(plain.record_values, amx.record_values);
    EXPECT_TRUE(same_bits(plain.out, amx.out)) << nmse(amx.out, plain.out);
  }
#endif
}

}  // namespace
}  // namespace nibble
