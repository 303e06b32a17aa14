#include "bench/kernels/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/thread_pool.h"

namespace nibble {
namespace {

constexpr int64_t kReadBytes = int64_t{448} << 20;  // larger than any cache here
constexpr int64_t kFmaSteps = 2'000'000;

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

#define NIBBLE_READ_BODY                                              \
  Words sum[4] = {};                                                  \
  const int64_t part = bytes / 4;                                     \
  for (int64_t i = 0; i + 64 <= part; i += 64) {                      \
    for (int s = 0; s < 4; ++s) {                                     \
      __builtin_prefetch(data + s * part + i + 2048);                 \
      sum[s] ^= *reinterpret_cast<const Words*>(data + s * part + i); \
    }                                                                 \
  }                                                                   \
  const Words all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];                \
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

__attribute__((noinline)) uint64_t read_portable(const char* data, int64_t bytes) {
  NIBBLE_READ_BODY
}
#if defined(__x86_64__)
__attribute__((noinline, target("avx2"))) uint64_t read_avx2(const char* data, int64_t bytes) {
  NIBBLE_READ_BODY
}
__attribute__((noinline, target("avx512f"))) uint64_t read_avx512(const char* data, int64_t bytes){
    NIBBLE_READ_BODY} NIBBLE_CONTRACT
    __attribute__((target("avx2,fma"))) float fma_avx2(float seed){
        NIBBLE_FMA_BODY(Floats8, 12)} NIBBLE_CONTRACT
    __attribute__((target("avx512f"))) float fma_avx512(float seed){NIBBLE_FMA_BODY(Floats16, 24)}
#endif
NIBBLE_CONTRACT float fma_portable(float seed) {
  NIBBLE_FMA_BODY(Floats8, 6)
}

struct Loops {
  uint64_t (*read)(const char*, int64_t);
  float (*fma)(float);
  int64_t floats;  // of all chains together
};

Loops loops() {
#if defined(__x86_64__)
  if (detected_isa() == Isa::kAvx512) return {read_avx512, fma_avx512, 24 * 16};
  if (detected_isa() == Isa::kAvx2) return {read_avx2, fma_avx2, 12 * 8};
#endif
  return {read_portable, fma_portable, 6 * 8};
}

}  // namespace

MachineLimits measure_limits(int threads) {
  static std::vector<char> memory(static_cast<size_t>(kReadBytes), 1);
  const Loops use = loops();
  ThreadPool pool(threads);
  MachineLimits limits = {};
  for (int repeat = 0; repeat < 3; ++repeat) {
    double begin = now(threads);
    pool.parallel_for(kReadBytes / (8 << 20), 1, [&](int64_t first, int64_t end, int) {
      for (int64_t i = first; i < end; ++i) {
        read_sink = use.read(memory.data() + i * (8 << 20), 8 << 20);
      }
    });
    limits.read_gb_per_s = std::max(limits.read_gb_per_s,
                                    static_cast<double>(kReadBytes) / (now(threads) - begin) / 1e9);
    begin = now(threads);
    pool.parallel_for(threads, 1, [&](int64_t, int64_t, int) { fma_sink = use.fma(1.0f); });
    limits.gflops =
        std::max(limits.gflops, 2.0 * static_cast<double>(use.floats * kFmaSteps * threads) /
                                    (now(threads) - begin) / 1e9);
  }
  return limits;
}

}  // namespace nibble
