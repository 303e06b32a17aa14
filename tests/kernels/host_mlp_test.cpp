// Experts in the cuda backend's layout on the host. The layout is written here from the text of
// packed_layout.h, apart from the kernel that packs on a GPU (tests/cuda compares with that).
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "nibble/kernels/cuda/host/tile_host_mlp.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

using cuda::kTileRows;
using cuda::kUnitCols;

struct Tiles {
  std::vector<uint8_t> bytes;
  LinearWeight weight;
};

int code_of(const HostLinear& host, int64_t row, int64_t col) {
  const int byte = static_cast<const uint8_t*>(host.data)[(row * host.cols + col) / 2];
  return col % 2 == 0 ? byte & 15 : byte >> 4;
}

// (floor(log2 s) + 9) << 3 | the fraction's bits; 0 for 0.
uint8_t scale_code(uint8_t s) {
  const float value = kE4m3Values[s];
  if (value == 0) return 0;
  int exponent = 0;
  const float fraction = std::frexp(value, &exponent);  // in [0.5, 1)
  return static_cast<uint8_t>((exponent - 1 + 9) << 3 | static_cast<int>(fraction * 16 - 8));
}

void put(Tiles& tiles, size_t at, uint32_t word) {
  std::memcpy(tiles.bytes.data() + at, &word, sizeof(word));
}

void pack_nvfp4_block(const HostLinear& host, int64_t row, int64_t col, uint32_t* x, uint32_t* y) {
  uint32_t pairs[8] = {};
  for (int i = 0; i < 16; ++i) {
    if (row >= host.rows || col + i >= host.cols) continue;
    // Codes under a scale of 0 are 0.
    if (static_cast<const uint8_t*>(host.scales)[(row * host.cols + col) / 16] == 0) continue;
    const auto code = static_cast<uint32_t>(code_of(host, row, col + i));
    pairs[i / 2] |= ((code & 8) << 12 | (code & 7) << 6) << (i % 2 * 16);
  }
  const uint32_t z = std::rotl(pairs[6], 8) | std::rotl(pairs[7], 30);
  *x = pairs[0] | std::rotl(pairs[1], 4) | std::rotl(pairs[2], 26) | (z & 0x60306030u);
  *y = pairs[3] | std::rotl(pairs[4], 4) | std::rotl(pairs[5], 26) | std::rotr(z & 0x80c180c1u, 2);
}

float value_at(const HostLinear& host, int64_t row, int64_t col) {
  if (row >= host.rows || col >= host.cols) return 0;
  const auto i = static_cast<size_t>(row * host.cols + col);
  return host.format == LinearFormat::kF32
             ? static_cast<const float*>(host.data)[i]
             : bf16_to_float(static_cast<const uint16_t*>(host.data)[i]);
}

// The `part`-th of three BF16 values whose sum `value` is.
uint32_t bf16_part(float value, int part) {
  for (int i = 0; i < part; ++i) value -= round_to_bf16(value);
  return float_to_bf16(value);
}

Tiles pack_tiles(const TestWeight& from) {
  const HostLinear& host = from.host;
  const auto shape = cuda::packed_shape(host.format, host.rows, host.cols);
  Tiles tiles;
  tiles.bytes.assign(shape.bytes() + 64, 0);
  const auto shift = 64 - reinterpret_cast<uintptr_t>(tiles.bytes.data()) % 64;
  for (int64_t tile = 0; tile < shape.tiles; ++tile) {
    for (int64_t unit = 0; unit < shape.units; ++unit) {
      const size_t base =
          shift + static_cast<size_t>((tile * shape.units + unit) * shape.unit_bytes);
      const int64_t first_col = unit % shape.x_units * kUnitCols;
      if (host.format == LinearFormat::kFp8Block) {
        const auto blocks = static_cast<size_t>((host.cols + 127) / 128);
        const size_t block =
            static_cast<size_t>(tile * kTileRows / 128) * blocks + static_cast<size_t>(unit);
        put(tiles, base + 2048,
            std::bit_cast<uint32_t>(static_cast<const float*>(host.scales)[block]));
      }
      for (size_t lane = 0; lane < 32; ++lane) {
        for (size_t half = 0; half < 2; ++half) {
          const auto col = first_col + static_cast<int64_t>(64 * half + 16 * (lane % 4));
          for (size_t upper = 0; upper < 2; ++upper) {
            const auto row = tile * kTileRows + static_cast<int64_t>(lane / 4 + 8 * upper);
            if (host.format == LinearFormat::kNvfp4) {
              uint32_t words[2];
              pack_nvfp4_block(host, row, col, &words[0], &words[1]);
              put(tiles, base + 512 * half + 16 * lane + 8 * upper, words[0]);
              put(tiles, base + 512 * half + 16 * lane + 8 * upper + 4, words[1]);
              if (row < host.rows && col < host.cols) {
                tiles.bytes[base + 1024 + 4 * lane + 2 * half + upper] = scale_code(
                    static_cast<const uint8_t*>(host.scales)[(row * host.cols + col) / 16]);
              }
            } else if (host.format == LinearFormat::kFp8Block) {
              for (size_t i = 0; i < 16; ++i) {
                const auto c = col + static_cast<int64_t>(i);
                if (row >= host.rows || c >= host.cols) continue;
                tiles.bytes[base + 1024 * half + 512 * upper + 16 * lane + i] =
                    static_cast<const uint8_t*>(host.data)[row * host.cols + c];
              }
            } else {
              const int part =
                  host.format == LinearFormat::kF32 ? static_cast<int>(unit / shape.x_units) : 0;
              for (size_t i = 0; i < 16; i += 2) {
                const auto c = col + static_cast<int64_t>(i);
                put(tiles,
                    base + 2048 * half + 512 * (i / 4) + 16 * lane + 4 * (upper + i % 4 / 2 * 2),
                    bf16_part(value_at(host, row, c), part) |
                        bf16_part(value_at(host, row, c + 1), part) << 16);
              }
            }
          }
        }
      }
    }
  }
  tiles.weight.format = host.format;
  tiles.weight.rows = host.rows;
  tiles.weight.cols = host.cols;
  tiles.weight.data = tiles.bytes.data() + shift;
  tiles.weight.global_scale = host.global_scale;
  return tiles;
}

std::vector<float> run_tiles(HostMlp& mlp, const MlpWeight& weight, TestMatrix& x,
                             std::span<const int64_t> rows) {
  TestMatrix out(x.rows(), weight.down_proj.rows);
  std::vector<const float*> from;
  std::vector<float*> to;
  for (const int64_t row : rows) {
    from.push_back(&x.at(row, 0));
    to.push_back(&out.at(row, 0));
  }
  const HostMlpRun run{&weight, from, to};
  mlp.run(std::span(&run, 1));
  EXPECT_TRUE(out.padding_intact());
  return out.values();
}

TEST(HostMlp, TilesAgreeWithTheReference) {
  ReferenceKernels reference;
  for (const LinearFormat format :
       {LinearFormat::kF32, LinearFormat::kBf16, LinearFormat::kFp8Block, LinearFormat::kNvfp4}) {
    for (const auto& [hidden, intermediate] :
         {std::pair<int64_t, int64_t>{48, 16}, {144, 272}, {1024, 400}}) {
      const TestMlp mlp = TestMlp::random(format, hidden, intermediate, 7);
      const PackedMlp plain = pack_mlp(reference, mlp);
      const Tiles gate = pack_tiles(mlp.gate);
      const Tiles up = pack_tiles(mlp.up);
      const Tiles down = pack_tiles(mlp.down);
      const MlpWeight weight{gate.weight, up.weight, down.weight};
      for (const bool fast : {false, true}) {
        const auto tiles = cuda::make_tile_host_mlp(2, fast);
        SCOPED_TRACE(testing::Message() << tiles->name() << " " << format_name(format) << " "
                                        << hidden << " x " << intermediate);
        TestMatrix x = TestMatrix::random(5, hidden, 8, 2);
        TestMatrix want(5, hidden);
        reference.mlp(x.view(), plain.weight(), want.view());
        const int64_t all[] = {0, 1, 2, 3, 4};
        const auto got = run_tiles(*tiles, weight, x, all);
        // Rounding to BF16, as a GPU does.
        const bool rounds = fast && cuda::has_fast_tiles() && format == LinearFormat::kNvfp4;
        EXPECT_LE(nmse(got, want.values()), rounds ? 2e-5 : 1e-11);
        // A row alone has the same bits.
        const int64_t one[] = {3};
        const auto alone = run_tiles(*tiles, weight, x, one);
        const auto begin = static_cast<size_t>(3 * hidden);
        EXPECT_EQ(0, std::memcmp(alone.data() + begin, got.data() + begin,
                                 static_cast<size_t>(hidden) * sizeof(float)));
      }
    }
  }
}

// Every code with every scale that is not NaN: a row of ones picks the codes' values out.
TEST(HostMlp, EveryCodeAndScaleIsDecoded) {
  TestWeight weight;
  weight.host.format = LinearFormat::kNvfp4;
  weight.host.rows = 127;
  weight.host.cols = 16;
  for (int s = 0; s < 127; ++s) {
    weight.scales.push_back(static_cast<uint8_t>(s));
    for (int c = 0; c < 8; ++c)
      weight.data.push_back(static_cast<uint8_t>(2 * c | (2 * c + 1) << 4));
  }
  weight.bind();
  const Tiles tiles = pack_tiles(weight);
  // gate = 40 (silu is the identity there), up = 1 for column c alone, down = codes.
  for (int c = 0; c < 16; ++c) {
    std::vector<std::vector<float>> pick(16, std::vector<float>(16, 0.0f));
    pick[static_cast<size_t>(c)][0] = 1;
    const Tiles gate = pack_tiles(TestWeight::of(
        LinearFormat::kF32, std::vector<std::vector<float>>(16, std::vector<float>(16, 2.5f))));
    const Tiles up = pack_tiles(TestWeight::of(LinearFormat::kF32, pick));
    const MlpWeight mlp{gate.weight, up.weight, tiles.weight};
    for (const bool fast : {false, true}) {
      const auto host = cuda::make_tile_host_mlp(1, fast);
      TestMatrix x = TestMatrix::of({std::vector<float>(16, 1.0f)});
      const int64_t rows[] = {0};
      const auto got = run_tiles(*host, mlp, x, rows);
      for (int s = 0; s < 127; ++s) {
        const float code =
            (c & 8 ? -1.0f : 1.0f) *
            (std::vector<float>{0, 0.5f, 1, 1.5f, 2, 3, 4, 6})[static_cast<size_t>(c % 8)];
        EXPECT_EQ(got[static_cast<size_t>(s)], 40 * code * kE4m3Values[s]) << s << " " << c;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
