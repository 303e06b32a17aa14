// How mla_wide_fp8.cu's tiles come to shared memory.
//
// A tile is 32 cache entries as BF16: nine blocks of 64 columns, 128 swizzled bytes a row. Each of
// two warpgroups brings its share of the columns: the left half of the latents, or the right one
// and the rope keys. Entries come as they are, by bulk copies of as many rows as lie together, and
// are converted while the tensor cores are busy.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/mla_wide_block.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/units.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kWideTile = 32;  // positions
constexpr int kWideKeyBlockBytes = kWideTile * 128;
constexpr int kWideTileBytes = kWideBlocks * kWideKeyBlockBytes;

// Tiles in shared memory, and FP8 tiles on their way there.
constexpr int kWideTiles = 3;
constexpr int kWideRawTiles = 2;
constexpr int kWideRawBytes = kWideTile * kEntry;
constexpr int kWideRingBytes = kWideTiles * kWideTileBytes + kWideRawTiles * kWideRawBytes;

struct WideBarriers {
  uint64_t full[kWideTiles];
  uint64_t raw_full[kWideRawTiles];
  uint64_t raw_empty[kWideRawTiles];
  uint64_t weights_full[2];
  uint64_t weights_empty[2];
};

// A position in a ring.
struct Turn {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Two values of a cache entry as BF16; NaN, which weights don't have, stays NaN.
__device__ inline uint32_t entry_pair(uint32_t word, int upper) {
  const uint32_t nan = __vcmpeq4(word & 0x7f7f7f7fu, 0x7f7f7f7fu);
  return Fp8Unit::pair(word, upper) | __byte_perm(nan, 0, upper == 0 ? 0x1100 : 0x3322);
}

// Brings a warpgroup's share of the run's tiles, one after the other.
class WideLoader {
 public:
  __device__ WideLoader(const RunEntries<uint8_t>& run, int half, uint8_t* tiles,
                        WideBarriers& barriers)
      : run_(run),
        half_(half),
        tiles_(tiles),
        raw_(tiles + kWideTiles * kWideTileBytes),
        barriers_(barriers) {
    if (!asks()) return;
    // For ask_first() to find near.
    for (int i = 0; i < kWideRawTiles; ++i) {
      if (position(i) < run_.end) prefetch_near(run_.table_entry(position(i)));
    }
  }

  __device__ void ask_first() {
    for (int i = 0; i < kWideRawTiles; ++i) ask();
  }
  __device__ void bring_first() {
#pragma unroll 1
    for (int slot = 0; slot + 1 < kWideTiles; ++slot) bring(slot);
  }

  // The next tile to `slot`, which nobody of the warpgroup reads any more.
  __device__ void bring(int slot) {
    const int left = run_.end - position(brought_);
    if (left <= 0) return;
    const int raw_slot = brought_ % kWideRawTiles;
    const auto phase = static_cast<uint32_t>(brought_ / kWideRawTiles % 2);
    ++brought_;
    barrier_wait(&barriers_.raw_full[raw_slot], phase);
    convert(raw_ + raw_slot * kWideRawBytes, tiles_ + slot * kWideTileBytes, left);
    fence_shared_for_wgmma();
    barrier_arrive(&barriers_.full[slot]);
    warp_arrive(&barriers_.raw_empty[raw_slot]);
    if (asks() && position(asked_) < run_.end) {
      barrier_wait(&barriers_.raw_empty[raw_slot], phase);
      ask();
    }
    __syncwarp();
  }

 private:
  __device__ bool asks() const { return threadIdx.x == 0; }
  __device__ int position(int tile) const { return run_.begin + tile * kWideTile; }

  // Sends for the next tile: one copy for what lies in one of the cache's blocks.
  __device__ void ask() {
    const int first = position(asked_);
    if (!asks() || first >= run_.end) return;
    const int rows = min(kWideTile, run_.end - first);
    const int raw_slot = asked_ % kWideRawTiles;
    ++asked_;
    barrier_expect(&barriers_.raw_full[raw_slot], rows * kEntry);
    for (int row = 0; row < rows;) {
      const int together = min(rows - row, run_.entries_from(first + row));
      bulk_copy_kept(raw_ + raw_slot * kWideRawBytes + row * kEntry, run_.entry(first + row),
                     together * kEntry, &barriers_.raw_full[raw_slot]);
      row += together;
    }
  }

  // This warpgroup's columns; rows from `left` on become zero. 8 threads take 64 columns of a row.
  __device__ void convert(const uint8_t* raw, uint8_t* tile, int left) const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int row = thread / 8;
    const uint8_t* const from = raw + row * kEntry + 256 * half_ + 8 * (thread % 8);
    uint8_t* const to = tile + 4 * half_ * kWideKeyBlockBytes + swizzled(row, thread % 8, 128);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      uint2 values[5];
      uint32_t nan = 0;
#pragma unroll
      for (int b = 0; b < 5; ++b) {
        const bool wanted = row + 16 * i < left && (b < 4 || half_ == 1);
        values[b] = wanted ? *reinterpret_cast<const uint2*>(from + 16 * i * kEntry + 64 * b)
                           : make_uint2(0, 0);
        // The highest bit of a byte: of NaN alone.
        nan |= ((values[b].x & 0x7f7f7f7fu) + 0x01010101u) |
               ((values[b].y & 0x7f7f7f7fu) + 0x01010101u);
      }
      const auto write = [&](auto pair_of) {
#pragma unroll
        for (int b = 0; b < 5; ++b) {
          if (b == 4 && half_ == 0) break;
          const uint2 v = values[b];
          *reinterpret_cast<uint4*>(to + b * kWideKeyBlockBytes + i * 2048) =
              make_uint4(pair_of(v.x, 0), pair_of(v.x, 1), pair_of(v.y, 0), pair_of(v.y, 1));
        }
      };
      if ((nan & 0x80808080u) == 0) {
        write([](uint32_t word, int upper) { return Fp8Unit::pair(word, upper); });
      } else {
        write([](uint32_t word, int upper) { return entry_pair(word, upper); });
      }
    }
  }

  const RunEntries<uint8_t>& run_;
  int half_;
  uint8_t* tiles_;
  uint8_t* raw_;  // [kWideRawTiles][rows][entry], both warpgroups'
  WideBarriers& barriers_;
  int asked_ = 0;    // tiles
  int brought_ = 0;  // tiles
};

}  // namespace nibble::cuda
