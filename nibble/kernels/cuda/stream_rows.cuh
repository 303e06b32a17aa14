// What the kernels of linear_stream.h share: where a group's weights and a slot's activations lie,
// a unit's activations as the mma takes them, and where a row tile's sums go.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {

// The weights of one group: b for gate and up alone.
struct GroupWeights {
  const uint8_t* a;
  const uint8_t* b;
};

__device__ inline GroupWeights group_weights(const StreamArgs& p, int group) {
  if (p.groups != nullptr) return {p.groups[group].a, p.groups[group].b};
  return {p.group.a + group * p.group_bytes, p.group.b};
}

// The row of x that belongs to place `index` of the slots, or of the tokens.
__device__ inline int activation_row(const StreamArgs& p, int index) {
  const int row = p.slots != nullptr ? p.slots[index] : index;
  if (p.x_divisor == 0) return row;
  return row < p.x_routed ? row / p.x_divisor : row - p.x_routed;
}

// The tokens of a piece of work.
struct StreamRows {
  int group;
  int first;  // of the slots, or of the tokens
  int count;
};

// Where the activations of a lane's tokens lie, column 16 (lane % 4); null where there is none.
template <typename X, int NT>
__device__ void find_rows(const StreamArgs& p, const X* x, const StreamRows& rows, int lane,
                          const X* (&x_rows)[NT]) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const int r = 8 * n + lane / 4;
    x_rows[n] = nullptr;
    if (r < rows.count) {
      const int row = activation_row(p, rows.first + r);
      x_rows[n] = x + row * p.x_row_stride + rows.group * p.x_group_stride + 16 * (lane % 4);
    }
  }
}

// 16 columns of a lane's tokens for each half of a unit, in BF16.
template <int NT>
struct UnitTokens {
  uint4 b[2][NT][2];
};

// Half a unit's columns on their way from memory. X: uint16_t (BF16), or float, which is rounded.
template <typename X, int NT>
struct TokenLoad {
  static constexpr int kWords = sizeof(X) / 2;
  uint4 raw[NT][2][kWords];

  // rows: of this lane's tokens, column 16 (lane % 4); null where there is none
  __device__ void load(const X* const (&rows)[NT], int col) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
          raw[n][i][k] = rows[n] != nullptr
                             ? reinterpret_cast<const uint4*>(rows[n] + col + 8 * i)[k]
                             : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  __device__ void store(uint4 (&to)[NT][2]) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kWords == 1) {
          to[n][i] = raw[n][i][0];
        } else {
          const auto rounded = [](uint32_t low, uint32_t high) {
            return bf16x2(__uint_as_float(low), __uint_as_float(high));
          };
          const uint4& low = raw[n][i][0];
          const uint4& high = raw[n][i][1];
          to[n][i] = make_uint4(rounded(low.x, low.y), rounded(low.z, low.w),
                                rounded(high.x, high.y), rounded(high.z, high.w));
        }
      }
    }
  }
};

template <typename X, int NT>
__device__ void load_tokens(const X* const (&rows)[NT], int col, UnitTokens<NT>& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    TokenLoad<X, NT> load;
    load.load(rows, col + 64 * half);
    load.store(to.b[half]);
  }
}

// Writes output `row` of the piece's token `token`: its sum a, and b of up's where there is gate
// and up. Nothing where the matrix has no such row.
__device__ inline void write_value(const StreamArgs& p, const StreamRows& rows, int row, int token,
                                   float a, float b) {
  if (row >= p.rows) return;
  const StreamGroup* const g = p.groups != nullptr ? p.groups + rows.group : &p.group;
  const int slot = rows.first + token;
  const int64_t out_row = p.slots != nullptr ? p.slots[slot] : slot;
  const float value = a * (g->scale_a * Nvfp4Unit::kScale);
  if (p.gate_up) {
    const float up = b * (g->scale_b * Nvfp4Unit::kScale);
    p.act[out_row * p.act_row_stride + row] = bf16_bits(value / (1 + expf(-value)) * up);
  } else {
    const int64_t column = rows.group * p.out_group_stride + row;
    p.out[out_row * p.out_row_stride + column] = value;
    if (p.out_copy != nullptr) {
      p.out_copy[out_row * p.out_copy_row_stride + column] = bf16_rounded(value);
    }
  }
}

// Writes what a lane has of row tile `tile` of NVFP4 weights: rows g and g + 8 of tokens 2t and
// 2t + 1 of the `n`th 8.
__device__ inline void write_tile(const StreamArgs& p, const StreamRows& rows, int tile, int n,
                                  int lane, const float4& a, const float4& b) {
  const int row = tile * kTileRows + lane / 4;
  const int token = 8 * n + 2 * (lane % 4);
  if (token >= rows.count) return;
  write_value(p, rows, row, token, a.x, b.x);
  write_value(p, rows, row + 8, token, a.z, b.z);
  if (token + 1 >= rows.count) return;
  write_value(p, rows, row, token + 1, a.y, b.y);
  write_value(p, rows, row + 8, token + 1, a.w, b.w);
}

}  // namespace nibble::cuda
