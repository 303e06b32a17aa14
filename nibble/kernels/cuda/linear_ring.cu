#include "nibble/kernels/cuda/linear_ring.cuh"
#include "nibble/kernels/cuda/linear_ring.h"

namespace nibble::cuda {
namespace {

// Measured on an H200 (docs/cuda.md): shorter matrices end before a ring has paid for itself,
// unless there are many of them.
constexpr int kLongUnits = 32;
constexpr int kManyWork = 24;

int64_t tiles_a_block(const StreamArgs& args, int blocks_per_sm) {
  static const int num_sms = multiprocessors();
  const int64_t matrices = args.work != nullptr ? args.max_work : args.num_groups;
  const int64_t blocks = static_cast<int64_t>(num_sms) * blocks_per_sm;
  return (matrices * args.tiles + blocks - 1) / blocks;
}

// One block of 16 warps on each SM shares its columns evenly; two of 8 let one launch begin while
// the last one ends. Those are faster where they have equal numbers of tiles, or so few that an SM
// has but one chunk.
bool takes_small_blocks(const StreamArgs& args) {
  if (args.work != nullptr) return tiles_a_block(args, 1) <= 3;
  const int64_t large = tiles_a_block(args, 1);
  const int64_t small = tiles_a_block(args, 2);
  return small >= 3 && 2 * small <= large;
}

// sm_120 has 99 KB.
bool has_room() {
  static const bool is_enough = [] {
    int device = 0;
    int bytes = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           bytes >= ring_shared_bytes<2, 16>() + kRingStaticBytes;
  }();
  return is_enough;
}

}  // namespace

bool ring_takes(const StreamArgs& args) {
  if (args.format != LinearFormat::kNvfp4 || args.x_parts != 1 || args.fixed_order) return false;
  if (!has_room()) return false;
  const int chunk_tiles = args.gate_up ? kRingTiles / 2 : kRingTiles;
  // Every matrix may end in a chunk that is not full, at both ends of a block's run.
  const int64_t chunks =
      tiles_a_block(args, 1) / chunk_tiles + 2 * (tiles_a_block(args, 1) / args.tiles + 2);
  constexpr int kMostIndex = 65535;  // what a block's table holds
  if (chunks > kRingChunks || args.tiles > kMostIndex || args.num_groups > kMostIndex) return false;
  if (args.work == nullptr) return args.units >= kLongUnits;
  return args.max_slots <= kMostIndex && (args.units >= kLongUnits || args.max_work > kManyWork);
}

cudaError_t launch_linear_ring(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  if (takes_small_blocks(args)) {
    if (args.x_float != nullptr) return launch_ring_config<float, 1, 8>(args, stream);
    return work_tokens == 8 ? launch_ring_config<uint16_t, 1, 8>(args, stream)
                            : launch_ring_config<uint16_t, 2, 8>(args, stream);
  }
  if (args.x_float != nullptr) return launch_ring_config<float, 1, 16>(args, stream);
  return work_tokens == 8 ? launch_ring_config<uint16_t, 1, 16>(args, stream)
                          : launch_ring_config<uint16_t, 2, 16>(args, stream);
}

}  // namespace nibble::cuda
