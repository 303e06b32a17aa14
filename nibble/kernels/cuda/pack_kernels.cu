// One thread writes one lane's share of one unit. Bound: bytes read and written.
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/pack_kernels.h"
#include "nibble/kernels/cuda/packed_layout.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// Where element (row, col) of the matrix to be packed lies in the source.
struct Source {
  const uint8_t* data;
  const uint8_t* scales;
  LinearFormat format;
  float global_scale;
  int64_t rows;  // of the packed matrix
  int64_t cols;
  int64_t first_row;  // of the source
  int64_t source_cols;
  bool transposed;  // element (r, c) is the source's (first_row + c, r)
};

__device__ float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int fraction = code & 7;
  const float magnitude = exponent == 0 ? ldexpf(static_cast<float>(fraction), -9)
                                        : ldexpf(static_cast<float>(8 + fraction), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

__device__ float e2m1_value(int code) {
  const int exponent = code >> 1 & 3;
  const int fraction = code & 1;
  const float magnitude = exponent == 0 ? 0.5f * static_cast<float>(fraction)
                                        : ldexpf(static_cast<float>(2 + fraction), exponent - 2);
  return code & 8 ? -magnitude : magnitude;
}

__device__ int nvfp4_code(const Source& s, int64_t row, int64_t col) {
  const int byte = s.data[(row * s.source_cols + col) / 2];
  return col % 2 == 0 ? byte & 0xf : byte >> 4;
}

// The value of the packed matrix's element (row, col); 0 outside. NVFP4: without the global scale.
__device__ float value_at(const Source& s, int64_t row, int64_t col) {
  if (row >= s.rows || col >= s.cols) return 0;
  const int64_t r = s.first_row + (s.transposed ? col : row);
  const int64_t c = s.transposed ? row : col;
  const int64_t i = r * s.source_cols + c;
  switch (s.format) {
    case LinearFormat::kF32:
      return reinterpret_cast<const float*>(s.data)[i];
    case LinearFormat::kBf16:
      return bf16_value(reinterpret_cast<const uint16_t*>(s.data)[i]);
    case LinearFormat::kFp8Block: {
      const int64_t blocks = (s.source_cols + 127) / 128;
      const float scale = reinterpret_cast<const float*>(s.scales)[r / 128 * blocks + c / 128];
      return __fmul_rn(e4m3_value(s.data[i]), scale);
    }
    case LinearFormat::kNvfp4:
      return e2m1_value(nvfp4_code(s, r, c)) * e4m3_value(s.scales[(r * s.source_cols + c) / 16]);
  }
  return 0;
}

// The words x and y of a block of 16 codes: see packed_layout.h.
__device__ uint2 nvfp4_words(const int (&c)[16]) {
  uint32_t pairs[8];
  for (int i = 0; i < 8; ++i) {
    const auto bits = [&](int code) {
      return static_cast<uint32_t>((code & 8) << 12 | (code & 7) << 6);
    };
    pairs[i] = bits(c[2 * i]) | bits(c[2 * i + 1]) << 16;
  }
  const auto rotated = [](uint32_t word, int by) { return __funnelshift_l(word, word, by); };
  const uint32_t z = rotated(pairs[6], 8) | rotated(pairs[7], 30);
  return {pairs[0] | rotated(pairs[1], 4) | rotated(pairs[2], 26) | (z & 0x60306030u),
          pairs[3] | rotated(pairs[4], 4) | rotated(pairs[5], 26) | rotated(z & 0x80c180c1u, 30)};
}

// E4M3 s -> ((floor(log2 s) + 9) << 3) | the three fraction bits of s; 0 -> 0 (its codes are 0).
__device__ uint8_t nvfp4_scale_code(uint8_t s) {
  const int exponent = s >> 3 & 15;
  const int fraction = s & 7;
  if (exponent > 0) return static_cast<uint8_t>((exponent + 2) << 3 | fraction);
  if (fraction >= 4) return static_cast<uint8_t>(2 << 3 | (fraction - 4) << 1);
  if (fraction >= 2) return static_cast<uint8_t>(1 << 3 | (fraction - 2) << 2);
  return 0;
}

__device__ uint8_t nvfp4_scale_at(const Source& s, int64_t row, int64_t col) {
  if (row >= s.rows || col >= s.cols) return 0;
  return s.scales[((s.first_row + row) * s.source_cols + col) / 16];
}

// Grid: one thread for each lane of each unit.
__global__ void pack_nvfp4_kernel(Source s, int64_t units, int64_t total, uint8_t* out) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int lane = static_cast<int>(index % 32);
  const int64_t unit = index / 32 % units;
  const int64_t tile = index / 32 / units;
  const int64_t first_row = tile * kTileRows + lane / 4;
  uint8_t* const base = out + index / 32 * kNvfp4UnitBytes;
  for (int half = 0; half < 2; ++half) {
    const int64_t col = unit * kUnitCols + 64 * half + 16 * (lane % 4);
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t row = first_row + 8 * upper;
      const uint8_t scale = nvfp4_scale_at(s, row, col);
      int c[16];
      for (int i = 0; i < 16; ++i) {
        const bool inside = row < s.rows && col + i < s.cols && scale != 0;
        c[i] = inside ? nvfp4_code(s, s.first_row + row, col + i) : 0;
      }
      reinterpret_cast<uint2*>(base + 512 * half + 16 * lane)[upper] = nvfp4_words(c);
      base[1024 + 4 * lane + 2 * half + upper] = nvfp4_scale_code(scale);
    }
  }
}

__global__ void pack_fp8_kernel(Source s, int64_t units, int64_t total, uint8_t* out) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int lane = static_cast<int>(index % 32);
  const int64_t unit = index / 32 % units;
  const int64_t tile = index / 32 / units;
  uint8_t* const base = out + index / 32 * kFp8UnitBytes;
  for (int half = 0; half < 2; ++half) {
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t row = tile * kTileRows + lane / 4 + 8 * upper;
      const int64_t col = unit * kUnitCols + 64 * half + 16 * (lane % 4);
      for (int i = 0; i < 16; ++i) {
        const bool inside = row < s.rows && col + i < s.cols;
        base[1024 * half + 512 * upper + 16 * lane + i] =
            inside ? s.data[(s.first_row + row) * s.source_cols + col + i] : uint8_t{0};
      }
    }
  }
  if (lane == 0) {
    const int64_t blocks = (s.source_cols + 127) / 128;
    const int64_t row = s.first_row + tile * kTileRows;
    *reinterpret_cast<float*>(base + 2048) =
        reinterpret_cast<const float*>(s.scales)[row / 128 * blocks + unit];
  }
}

// part < 0: the value itself, which is one of BF16; 0, 1, 2: the first, second, third BF16 value of
// the exact sum.
__global__ void pack_bf16_kernel(Source s, int64_t units, int part, int64_t tile_units,
                                 int64_t first_unit, int64_t total, uint8_t* out) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int lane = static_cast<int>(index % 32);
  const int64_t unit = index / 32 % units;
  const int64_t tile = index / 32 / units;
  uint8_t* const base = out + (tile * tile_units + first_unit + unit) * kBf16UnitBytes;
  for (int half = 0; half < 2; ++half) {
    for (int step = 0; step < 4; ++step) {
      for (int reg = 0; reg < 4; ++reg) {
        const int64_t row = tile * kTileRows + lane / 4 + 8 * (reg % 2);
        const int64_t col =
            unit * kUnitCols + 64 * half + 16 * (lane % 4) + 4 * step + 2 * (reg / 2);
        uint32_t pair = 0;
        for (int i = 0; i < 2; ++i) {
          const float value = value_at(s, row, col + i);
          const uint16_t bits = part < 0 ? bf16_bits(value) : bf16_part(value, part);
          pair |= static_cast<uint32_t>(bits) << (16 * i);
        }
        reinterpret_cast<uint32_t*>(base + 2048 * half + 512 * step + 16 * lane)[reg] = pair;
      }
    }
  }
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(ceil_div(threads, kThreads)); }

void pack(const Source& s, LinearFormat as, void* destination, cudaStream_t stream) {
  const PackedShape shape = packed_shape(as, s.rows, s.cols);
  auto* const out = static_cast<uint8_t*>(destination);
  const int64_t total = shape.tiles * shape.x_units * 32;
  if (as == LinearFormat::kNvfp4) {
    pack_nvfp4_kernel<<<blocks_for(total), kThreads, 0, stream>>>(s, shape.units, total, out);
  } else if (as == LinearFormat::kFp8Block) {
    pack_fp8_kernel<<<blocks_for(total), kThreads, 0, stream>>>(s, shape.units, total, out);
  } else {
    const bool parts = as == LinearFormat::kF32;
    for (int part = 0; part < (parts ? kF32Parts : 1); ++part) {
      pack_bf16_kernel<<<blocks_for(total), kThreads, 0, stream>>>(
          s, shape.x_units, parts ? part : -1, shape.units, part * shape.x_units, total, out);
    }
  }
}

Source source_of(const LinearWeight& w) {
  Source s = {};
  s.data = static_cast<const uint8_t*>(w.data);
  s.scales = static_cast<const uint8_t*>(w.scales);
  s.format = w.format;
  s.global_scale = w.global_scale;
  s.rows = w.rows;
  s.cols = w.cols;
  s.source_cols = w.cols;
  return s;
}

}  // namespace

void launch_pack(const LinearWeight& source, void* destination, cudaStream_t stream) {
  pack(source_of(source), source.format, destination, stream);
}

void launch_pack_mla_up(const LinearWeight& source, int64_t heads, int64_t nope, int64_t value,
                        void* k_trans, void* v, cudaStream_t stream) {
  const bool exact = source.format == LinearFormat::kBf16 || source.format == LinearFormat::kNvfp4;
  const LinearFormat as = exact ? LinearFormat::kBf16 : LinearFormat::kF32;
  const size_t k_bytes = packed_shape(as, source.cols, nope).bytes();
  const size_t v_bytes = packed_shape(as, value, source.cols).bytes();
  for (int64_t head = 0; head < heads; ++head) {
    Source s = source_of(source);
    s.first_row = head * (nope + value);
    s.transposed = true;
    s.rows = source.cols;
    s.cols = nope;
    pack(s, as, static_cast<uint8_t*>(k_trans) + static_cast<size_t>(head) * k_bytes, stream);
    s.first_row += nope;
    s.transposed = false;
    s.rows = value;
    s.cols = source.cols;
    pack(s, as, static_cast<uint8_t*>(v) + static_cast<size_t>(head) * v_bytes, stream);
  }
}

}  // namespace nibble::cuda
