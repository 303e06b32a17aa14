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
#include "nibble/numeric/bf16.h"
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
    const auto scratch_floats =
        static_cast<size_t>(tile_scratch_floats(c.tokens, c.planes, panels));
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
  for (const LinearFormat format :
       {LinearFormat::kNvfp4, LinearFormat::kBf16, LinearFormat::kFp8Block}) {
    for (const int planes : {1, 2}) {
      if (format == LinearFormat::kFp8Block && planes == 2) continue;
      for (const int64_t tokens : {1, 7, 16, 17, 32, 33, 48, 70}) {
        cases.push_back({format, 55, 592, tokens, planes});
      }
      cases.push_back({format, 256, 48, 9, planes});
      cases.push_back({format, 16, 1040, 100, planes});
      cases.push_back({format, 1, 16, 3, planes});
      cases.push_back({format, 130, 32, 65, planes});
      cases.push_back({format, 72, 1120, 50, planes});  // three blocks of steps
    }
    if (format == LinearFormat::kBf16) cases.push_back({format, 40, 77, 40, 2});
    if (format != LinearFormat::kNvfp4) {
      cases.push_back({format, 40, 333, 5, 1});
      cases.push_back({format, 40, 333, 77, 1});
    }
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
    const float factor = c.format == LinearFormat::kBf16
                             ? kTileBf16Factor
                             : kTileCodeFactor * product.source.host.global_scale;
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

// Products of rows with panels made of floats, as attention takes them: poison around the results.
struct ReadyCase {
  int64_t tokens;
  int64_t depth;
  int64_t outputs;
  int planes;
  int b_planes;
};

std::vector<ReadyCase> ready_cases() {
  std::vector<ReadyCase> cases;
  for (const auto& [planes, b_planes] :
       {std::pair<int, int>{1, 1}, std::pair<int, int>{2, 1}, std::pair<int, int>{2, 2}}) {
    for (const int64_t tokens : {1, 16, 23, 32, 37, 55, 64}) {
      cases.push_back({tokens, 192, 48, planes, b_planes});
    }
    cases.push_back({33, 40, 16, planes, b_planes});
    cases.push_back({64, 128, 128, planes, b_planes});
  }
  return cases;
}

// Of two calls, the second of which adds to the first.
std::vector<float> ready_product(const TileIsa& isa, const ReadyCase& c, int64_t stride) {
  const std::vector<float> x = random_floats(static_cast<size_t>(c.tokens * c.depth), 41);
  const std::vector<float> w = random_floats(static_cast<size_t>(c.depth * c.outputs), 42);
  const auto device = make_host_device();
  const int64_t a_slice = c.tokens * c.planes * kTileRecordBytes;
  const int64_t steps = (c.depth + kTileStepCols - 1) / kTileStepCols;
  const int64_t b_panel = steps * c.b_planes * kTilePlaneBytes;
  const int64_t panels = c.outputs / kPanelRows;
  Buffer rows = device->allocate(static_cast<size_t>(slices_of(c.depth) * a_slice)).value();
  Buffer tiles = device->allocate(static_cast<size_t>(panels * b_panel)).value();
  for (int64_t s = 0; s < slices_of(c.depth); ++s) {
    for (int64_t t = 0; t < c.tokens; ++t) {
      isa.quantize_planes(x.data() + t * c.depth + s * kSliceCols,
                          std::min<int64_t>(kSliceCols, c.depth - s * kSliceCols), c.planes, t,
                          c.tokens, rows.as<uint8_t>() + s * a_slice);
    }
  }
  for (int64_t p = 0; p < panels; ++p) {
    isa.expand_floats(w.data() + p * c.depth * kPanelRows, c.depth, c.b_planes,
                      tiles.as<uint8_t>() + p * b_panel);
  }
  std::vector<float> out(static_cast<size_t>(c.tokens * stride), 1e30f);
  for (const bool accumulate : {false, true}) {
    isa.multiply_expanded(rows.data(), a_slice, c.tokens, c.planes, tiles.data(), b_panel, panels,
                          steps, c.b_planes, out.data(), stride, kPanelRows, accumulate);
  }
  return out;
}

TEST(TileIsa, RowsMeetPanelsOfFloats) {
  for (const ReadyCase& c : ready_cases()) {
    SCOPED_TRACE(testing::Message() << c.tokens << " x " << c.depth << " x " << c.outputs
                                    << " planes " << c.planes << " " << c.b_planes);
    const int64_t stride = c.outputs + 5;
    const std::vector<float> out = ready_product(kTileIsaPortable, c, stride);
    const std::vector<float> x = random_floats(static_cast<size_t>(c.tokens * c.depth), 41);
    const std::vector<float> w = random_floats(static_cast<size_t>(c.depth * c.outputs), 42);
    std::vector<float> got;
    std::vector<float> want;
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t n = 0; n < c.outputs; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < c.depth; ++k) {
          // A panel is [depth, 16].
          const int64_t at = (n / kPanelRows * c.depth + k) * kPanelRows + n % kPanelRows;
          float weight = w[static_cast<size_t>(at)];
          if (c.b_planes == 1) weight = round_to_bf16(weight);
          float value = x[static_cast<size_t>(t * c.depth + k)];
          if (c.planes == 1) value = round_to_bf16(value);
          sum += double{value} * double{weight};
        }
        want.push_back(static_cast<float>(2 * sum));
        got.push_back(kTileBf16Factor * out[static_cast<size_t>(t * stride + n)]);
      }
      for (int64_t i = c.outputs; i < stride; ++i) {
        EXPECT_EQ(out[static_cast<size_t>(t * stride + i)], 1e30f);
      }
    }
    EXPECT_LE(nmse(got, want), c.planes == 1 ? 1e-12 : 3e-11);
  }
}

TEST(TileIsa, AmxHasTheBitsOfThePlainLoopsForPanelsOfFloats) {
  if (detected_isa() < Isa::kAmx) GTEST_SKIP() << "no AMX here";
#if defined(__x86_64__)
  for (const ReadyCase& c : ready_cases()) {
    EXPECT_TRUE(same_bits(ready_product(kTileIsaPortable, c, c.outputs),
                          ready_product(kTileIsaAmx, c, c.outputs)))
        << c.tokens << " x " << c.depth << " x " << c.outputs << " planes " << c.planes << " "
        << c.b_planes;
  }
#endif
}

// A panel of tiles has its columns' pairs side by side: columns 2 i and 2 i + 1 of output r at byte
// 64 i + 4 r of their step.
TEST(TileIsa, Bf16RowsAndColumnsBecomePanels) {
  std::vector<const TileIsa*> isas = {&kTileIsaPortable};
#if defined(__x86_64__)
  if (detected_isa() >= Isa::kAmx) isas.push_back(&kTileIsaAmx);
#endif
  for (const TileIsa* const isa : isas) {
    for (const int64_t count : {1, 7, 16, 31, 32, 50, 128}) {
      constexpr int64_t kWidth = 80;  // of a row, past which it may not be read
      std::vector<std::vector<uint16_t>> values(static_cast<size_t>(count));
      std::vector<const uint16_t*> rows;
      for (size_t i = 0; i < values.size(); ++i) {
        for (size_t k = 0; k < kWidth; ++k) {
          values[i].push_back(static_cast<uint16_t>(1 + i * kWidth + k));
        }
        rows.push_back(values[i].data());
      }
      const auto at = [](const std::vector<uint8_t>& tiles, int64_t column, int64_t output) {
        uint16_t value = 0;
        const int64_t byte =
            column / 32 * kTilePlaneBytes + column % 32 / 2 * 64 + 4 * output + column % 2 * 2;
        std::memcpy(&value, tiles.data() + byte, sizeof(value));
        return value;
      };
      if (count <= 16) {
        std::vector<uint8_t> tiles(3 * kTilePlaneBytes + 64, 0xee);
        isa->expand_rows(rows.data(), count, kWidth, tiles.data());
        for (int64_t k = 0; k < 96; ++k) {
          for (int64_t r = 0; r < 16; ++r) {
            const bool inside = r < count && k < kWidth;
            ASSERT_EQ(at(tiles, k, r), inside ? 1 + r * kWidth + k : 0) << k << " " << r;
          }
        }
        EXPECT_EQ(tiles[3 * kTilePlaneBytes], 0xee);
      }
      const int64_t steps = (count + 31) / 32;
      const int64_t b_panel = 4 * kTilePlaneBytes;
      std::vector<uint8_t> tiles(static_cast<size_t>(5 * b_panel), 0xee);
      isa->expand_columns(rows.data(), count, 5, tiles.data(), b_panel);
      for (int64_t p = 0; p < 5; ++p) {
        const std::vector<uint8_t> panel(tiles.begin() + p * b_panel,
                                         tiles.begin() + (p + 1) * b_panel);
        for (int64_t k = 0; k < 32 * steps; ++k) {
          for (int64_t r = 0; r < 16; ++r) {
            ASSERT_EQ(at(panel, k, r), k < count ? 1 + k * kWidth + 16 * p + r : 0)
                << k << " " << r;
          }
        }
        if (steps < 4) {
          EXPECT_EQ(panel[static_cast<size_t>(steps * kTilePlaneBytes)], 0xee);
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
