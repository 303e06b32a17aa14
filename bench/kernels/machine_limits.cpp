#include "bench/kernels/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>

#include "nibble/base/cpu_features.h"
#include "nibble/base/thread_pool.h"
#include "nibble/device/device.h"

namespace nibble {
namespace {

constexpr int64_t kReadBytes = int64_t{448} << 20;  // larger than any cache here
constexpr int64_t kFmaSteps = 1'000'000;

// Results go here, so that the loops are not empty to the compiler.
std::atomic<uint64_t> read_sink;
std::atomic<float> fma_sink;

// Seconds: of this thread's processor where it works alone, so that other programs don't count; of
// the wall where several threads do.
double now(int threads) {
  timespec time = {};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The loops are compiled for the level that runs them; vectors of the compiler's own kind are
// enough.
typedef uint64_t Words __attribute__((vector_size(64), aligned(8)));
typedef float Floats16 __attribute__((vector_size(64)));
typedef float Floats8 __attribute__((vector_size(32)));

#define NIBBLE_READ_BODY(kStreams, kAhead)                            \
  Words sum[kStreams] = {};                                           \
  const int64_t part = bytes / kStreams;                              \
  for (int64_t i = 0; i + 64 <= part; i += 64) {                      \
    for (int s = 0; s < kStreams; ++s) {                              \
      __builtin_prefetch(data + s * part + i + kAhead);               \
      sum[s] ^= *reinterpret_cast<const Words*>(data + s * part + i); \
    }                                                                 \
  }                                                                   \
  Words all = sum[0];                                                 \
  for (int s = 1; s < kStreams; ++s) all ^= sum[s];                   \
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];

// Independent chains from different starts, or the compiler would do one for all; a * b + c is
// contracted to an FMA by -ffp-contract=fast.
#define NIBBLE_FMA_BODY(Vector, kChains)                                                \
  Vector sum[kChains];                                                                  \
  _Pragma("GCC unroll 24") for (int i = 0; i < kChains; ++i) sum[i] =                   \
      Vector{} + (seed + static_cast<float>(i));                                        \
  const Vector a = Vector{} + 0.999f * seed;                                            \
  const Vector b = Vector{} + 1e-3f * seed;                                             \
  for (int64_t step = 0; step < kFmaSteps; ++step) {                                    \
    _Pragma("GCC unroll 24") for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * a + b; \
  }                                                                                     \
  float total = 0;                                                                      \
  for (int i = 0; i < kChains; ++i) total += sum[i][0];                                 \
  return total;

#define NIBBLE_CONTRACT __attribute__((noinline, optimize("fp-contract=fast")))

__attribute__((noinline)) uint64_t read_portable(const char* data, int64_t bytes){
    NIBBLE_READ_BODY(1, 4096)} NIBBLE_CONTRACT
    float fma_portable(float seed){NIBBLE_FMA_BODY(Floats8, 6)}
#if defined(__x86_64__)
#define NIBBLE_TARGET(isa) __attribute__((noinline, target(isa)))
NIBBLE_TARGET("avx2") uint64_t read_avx2(const char* data, int64_t bytes){
    NIBBLE_READ_BODY(1, 4096)} NIBBLE_TARGET("avx2") uint64_t
    read4_avx2(const char* data,
               int64_t bytes){NIBBLE_READ_BODY(4, 2048)} NIBBLE_TARGET("avx512f") uint64_t
    read_avx512(const char* data,
                int64_t bytes){NIBBLE_READ_BODY(1, 4096)} NIBBLE_TARGET("avx512f") uint64_t
    read4_avx512(const char* data, int64_t bytes){NIBBLE_READ_BODY(4, 2048)} NIBBLE_CONTRACT
    __attribute__((target("avx2,fma"))) float fma_avx2(float seed){
        NIBBLE_FMA_BODY(Floats8, 12)} NIBBLE_CONTRACT
    __attribute__((target("avx512f"))) float fma_avx512(float seed){NIBBLE_FMA_BODY(Floats16, 24)}

// Sixteen independent chains of one instruction with two register operands.
#define NIBBLE_CHAIN(instruction, i) \
  asm volatile(instruction " %1, %2, %0" : "+v"(sum##i) : "v"(a), "v"(b))
#define NIBBLE_CHAINS_BODY(instruction)                                                           \
  const Words a = Words{} + seed;                                                                 \
  const Words b = Words{} + 3;                                                                    \
  Words sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {}, sum4 = {}, sum5 = {}, sum6 = {}, sum7 = {},   \
        sum8 = {}, sum9 = {}, sum10 = {}, sum11 = {}, sum12 = {}, sum13 = {}, sum14 = {},         \
        sum15 = {};                                                                               \
  for (int64_t step = 0; step < kFmaSteps; ++step) {                                              \
    NIBBLE_CHAIN(instruction, 0);                                                                 \
    NIBBLE_CHAIN(instruction, 1);                                                                 \
    NIBBLE_CHAIN(instruction, 2);                                                                 \
    NIBBLE_CHAIN(instruction, 3);                                                                 \
    NIBBLE_CHAIN(instruction, 4);                                                                 \
    NIBBLE_CHAIN(instruction, 5);                                                                 \
    NIBBLE_CHAIN(instruction, 6);                                                                 \
    NIBBLE_CHAIN(instruction, 7);                                                                 \
    NIBBLE_CHAIN(instruction, 8);                                                                 \
    NIBBLE_CHAIN(instruction, 9);                                                                 \
    NIBBLE_CHAIN(instruction, 10);                                                                \
    NIBBLE_CHAIN(instruction, 11);                                                                \
    NIBBLE_CHAIN(instruction, 12);                                                                \
    NIBBLE_CHAIN(instruction, 13);                                                                \
    NIBBLE_CHAIN(instruction, 14);                                                                \
    NIBBLE_CHAIN(instruction, 15);                                                                \
  }                                                                                               \
  const Words all = sum0 ^ sum1 ^ sum2 ^ sum3 ^ sum4 ^ sum5 ^ sum6 ^ sum7 ^ sum8 ^ sum9 ^ sum10 ^ \
                    sum11 ^ sum12 ^ sum13 ^ sum14 ^ sum15;                                        \
  return static_cast<float>(all[0] & 1);
NIBBLE_TARGET("avx512f") float int16_avx512vnni(uint64_t seed){
    NIBBLE_CHAINS_BODY("vpdpwssd")} NIBBLE_TARGET("avx512f") float int8_avx512vnni(uint64_t seed){
    NIBBLE_CHAINS_BODY("vpdpbusd")} NIBBLE_TARGET("avx512f") float bf16_avx512(uint64_t seed) {
  NIBBLE_CHAINS_BODY("vdpbf16ps")
}

constexpr int64_t kTileSteps = 500'000;

struct alignas(64) TileSettings {
  uint8_t palette = 1;
  uint8_t reserved[15] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((noinline)) float amx_bf16() {
  alignas(64) uint16_t operands[2][4][512];
  uint32_t random = 1;
  for (auto& set : operands) {
    for (auto& tile : set) {
      // Of all signs and fractions: equal values take less current and let the clock rise.
      for (uint16_t& value : tile) {
        random = random * 1664525 + 1013904223;
        value = static_cast<uint16_t>((random >> 16 & 0x80ff) | 0x3f00);
      }
    }
  }
  const TileSettings settings;
  asm volatile(
      "ldtilecfg %0; tilezero %%tmm0; tilezero %%tmm1; tilezero %%tmm2; tilezero %%tmm3" ::"m"(
          settings));
  for (int64_t step = 0; step < kTileSteps; ++step) {
    const auto* const tiles = operands[step & 1];
    asm volatile(
        "tileloadd (%0,%4,1), %%tmm4; tileloadd (%1,%4,1), %%tmm5;"
        "tileloadd (%2,%4,1), %%tmm6; tileloadd (%3,%4,1), %%tmm7;"
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0; tdpbf16ps %%tmm7, %%tmm4, %%tmm1;"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2; tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::"r"(tiles[0]),
        "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3]), "r"(int64_t{64})
        : "memory");
  }
  alignas(64) float sum[256];
  asm volatile("tilestored %%tmm0, (%0,%1,1); tilerelease" ::"r"(sum), "r"(int64_t{64}) : "memory");
  return sum[0];
}
#endif
constexpr int kChains = 16;

struct Loops {
  uint64_t (*read)(const char*, int64_t);
  uint64_t (*read4)(const char*, int64_t);
  float (*fma)(float);
  int64_t floats;  // of all chains together
};

Loops loops() {
#if defined(__x86_64__)
  if (detected_isa() >= Isa::kAvx512) return {read_avx512, read4_avx512, fma_avx512, 24 * 16};
  if (detected_isa() == Isa::kAvx2) return {read_avx2, read4_avx2, fma_avx2, 12 * 8};
#endif
  return {read_portable, read_portable, fma_portable, 6 * 8};
}

}  // namespace

MachineLimits measure_limits(int threads) {
  // As the kernels' own memory is: on huge pages where the system gives them.
  static const std::unique_ptr<Device> host = make_host_device();
  static const Buffer memory = host->allocate(kReadBytes).value();
  static const bool touched = (std::memset(memory.data(), 1, kReadBytes), true);
  (void)touched;
  const Loops use = loops();
  ThreadPool pool(threads);
  MachineLimits limits = {};
  const auto read_rate = [&](const auto& loop) {
    const double begin = now(threads);
    pool.parallel_for(kReadBytes / (8 << 20), 1, [&](int64_t first, int64_t end, int) {
      for (int64_t i = first; i < end; ++i) {
        read_sink = loop(memory.as<char>() + i * (8 << 20), 8 << 20);
      }
    });
    return static_cast<double>(kReadBytes) / (now(threads) - begin) / 1e9;
  };
  // Two operations for each of `products` products of one call.
  const auto product_rate = [&](double products, const auto& loop) {
    const double begin = now(threads);
    pool.parallel_for(threads, 1, [&](int64_t, int64_t, int) { fma_sink = loop(); });
    return 2 * products * threads / (now(threads) - begin) / 1e9;
  };
  for (int repeat = 0; repeat < 3; ++repeat) {
    limits.read_gb_per_s =
        std::max({limits.read_gb_per_s, read_rate(use.read), read_rate(use.read4)});
    limits.fma_gflops = std::max(
        limits.fma_gflops,
        product_rate(static_cast<double>(use.floats * kFmaSteps), [&] { return use.fma(1.0f); }));
#if defined(__x86_64__)
    constexpr double kVectors = kChains * kFmaSteps;
    if (detected_isa() >= Isa::kAvx512Vnni) {
      limits.int16_gops = std::max(limits.int16_gops,
                                   product_rate(32 * kVectors, [] { return int16_avx512vnni(5); }));
      limits.int8_gops = std::max(limits.int8_gops,
                                  product_rate(64 * kVectors, [] { return int8_avx512vnni(5); }));
    }
    if (detected_isa() >= Isa::kAmx) {
      limits.amx_gflops = std::max(
          limits.amx_gflops, product_rate(4.0 * 8192 * kTileSteps, [] { return amx_bf16(); }));
    }
    if (__builtin_cpu_supports("avx512bf16")) {
      limits.bf16_gflops =
          std::max(limits.bf16_gflops, product_rate(32 * kVectors, [] { return bf16_avx512(5); }));
    }
#endif
  }
  return limits;
}

}  // namespace nibble
