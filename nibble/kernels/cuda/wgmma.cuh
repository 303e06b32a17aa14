// Hopper's asynchronous products of a warpgroup (sm_90a): 64 rows of A from registers or shared
// memory, B from shared memory. Elsewhere these are empty and the kernels that use them are not
// run.
#pragma once

#include <cstdint>

namespace nibble::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_WGMMA(...) asm volatile(__VA_ARGS__)
#else
#define NIBBLE_WGMMA(...)
#endif

// Registers written before are seen by the products issued after.
__device__ inline void wgmma_fence() { NIBBLE_WGMMA("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  NIBBLE_WGMMA("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the last kPending groups are done.
template <int kPending>
__device__ void wgmma_wait() {
  NIBBLE_WGMMA("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of an accumulator over a wait.
template <int kCount>
__device__ void wgmma_hold(float (&c)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) NIBBLE_WGMMA("" : "+f"(c[i])::"memory");
}

// Shared memory written by ordinary stores is seen by the products issued after.
__device__ inline void fence_shared_for_wgmma() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A warpgroup's registers per thread, from here on.
template <int kCount>
__device__ void give_registers() {
  NIBBLE_WGMMA("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ void take_registers() {
  NIBBLE_WGMMA("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Rows of 128 bytes whose 16-byte chunks are swapped by the row's number (row & 7), 8 rows to 1024
// aligned bytes; PTX ISA, "Shared memory matrix layout". `leading` is the distance in bytes between
// columns of such atoms, where there are several.
__device__ inline uint64_t swizzled_descriptor(uint32_t address, int leading = 16) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

#define NIBBLE_C8(c, i)                                                                       \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define NIBBLE_R0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NIBBLE_R1 NIBBLE_R0 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NIBBLE_R2 NIBBLE_R1 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define NIBBLE_R3 NIBBLE_R2 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define NIBBLE_R4 NIBBLE_R3 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define NIBBLE_R5 NIBBLE_R4 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define NIBBLE_R6 NIBBLE_R5 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define NIBBLE_R7 NIBBLE_R6 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define NIBBLE_RS(N, REGISTERS, A0, A1, A2, A3, B, D, ...)                                      \
  NIBBLE_WGMMA("{.reg .pred add;\nsetp.ne.b32 add, %" D                                         \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" REGISTERS "}, {%" A0 \
               ",%" A1 ",%" A2 ",%" A3 "}, %" B ", add, 1, 1, 0;}"                              \
               : __VA_ARGS__                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

// c [64, N] = (add ? c : 0) + a [64, 16] b [16, N]; a as four fragments of mma.m16n8k16, one a
// warp, b with neighbouring k (tokens in rows).
template <int N>
__device__ void wgmma_registers(float (&c)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
  if constexpr (N == 16) {
    NIBBLE_RS("16", NIBBLE_R0, "8", "9", "10", "11", "12", "13", NIBBLE_C8(c, 0));
  } else if constexpr (N == 32) {
    NIBBLE_RS("32", NIBBLE_R1, "16", "17", "18", "19", "20", "21", NIBBLE_C8(c, 0),
              NIBBLE_C8(c, 8));
  } else if constexpr (N == 48) {
    NIBBLE_RS("48", NIBBLE_R2, "24", "25", "26", "27", "28", "29", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
              NIBBLE_C8(c, 16));
  } else if constexpr (N == 64) {
    NIBBLE_RS("64", NIBBLE_R3, "32", "33", "34", "35", "36", "37", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
              NIBBLE_C8(c, 16), NIBBLE_C8(c, 24));
  } else if constexpr (N == 80) {
    NIBBLE_RS("80", NIBBLE_R4, "40", "41", "42", "43", "44", "45", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
              NIBBLE_C8(c, 16), NIBBLE_C8(c, 24), NIBBLE_C8(c, 32));
  } else if constexpr (N == 96) {
    NIBBLE_RS("96", NIBBLE_R5, "48", "49", "50", "51", "52", "53", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
              NIBBLE_C8(c, 16), NIBBLE_C8(c, 24), NIBBLE_C8(c, 32), NIBBLE_C8(c, 40));
  } else if constexpr (N == 112) {
    NIBBLE_RS("112", NIBBLE_R6, "56", "57", "58", "59", "60", "61", NIBBLE_C8(c, 0),
              NIBBLE_C8(c, 8), NIBBLE_C8(c, 16), NIBBLE_C8(c, 24), NIBBLE_C8(c, 32),
              NIBBLE_C8(c, 40), NIBBLE_C8(c, 48));
  } else {
    static_assert(N == 128);
    NIBBLE_RS("128", NIBBLE_R7, "64", "65", "66", "67", "68", "69", NIBBLE_C8(c, 0),
              NIBBLE_C8(c, 8), NIBBLE_C8(c, 16), NIBBLE_C8(c, 24), NIBBLE_C8(c, 32),
              NIBBLE_C8(c, 40), NIBBLE_C8(c, 48), NIBBLE_C8(c, 56));
  }
}

#define NIBBLE_R8 NIBBLE_R7 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define NIBBLE_R9 NIBBLE_R8 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define NIBBLE_R10 NIBBLE_R9 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define NIBBLE_R11 NIBBLE_R10 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define NIBBLE_R12 NIBBLE_R11 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define NIBBLE_R13 NIBBLE_R12 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define NIBBLE_R14 NIBBLE_R13 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define NIBBLE_R15 NIBBLE_R14 ",%120,%121,%122,%123,%124,%125,%126,%127"
#define NIBBLE_SS(N, REGISTERS, A, B, D, TRANSPOSED, ...)                                     \
  NIBBLE_WGMMA("{.reg .pred add;\nsetp.ne.b32 add, %" D                                       \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" REGISTERS "}, %" A \
               ", %" B ", add, 1, 1, 0, " TRANSPOSED ";}"                                     \
               : __VA_ARGS__                                                                  \
               : "l"(a), "l"(b), "r"(add))

// c [64, 32] = (add ? c : 0) + a [64, 16] b [16, 32], both with neighbouring k.
__device__ inline void wgmma_scores(float (&c)[16], uint64_t a, uint64_t b, int add) {
  NIBBLE_SS("32", NIBBLE_R1, "16", "17", "18", "0", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8));
}
// Of 64 columns.
__device__ inline void wgmma_scores(float (&c)[32], uint64_t a, uint64_t b, int add) {
  NIBBLE_SS("64", NIBBLE_R3, "32", "33", "34", "0", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
            NIBBLE_C8(c, 16), NIBBLE_C8(c, 24));
}

// c [64, 256] += a [64, 16] b [16, 256], b with neighbouring columns.
__device__ inline void wgmma_values(float (&c)[128], uint64_t a, uint64_t b, int add) {
  NIBBLE_SS("256", NIBBLE_R15, "128", "129", "130", "1", NIBBLE_C8(c, 0), NIBBLE_C8(c, 8),
            NIBBLE_C8(c, 16), NIBBLE_C8(c, 24), NIBBLE_C8(c, 32), NIBBLE_C8(c, 40),
            NIBBLE_C8(c, 48), NIBBLE_C8(c, 56), NIBBLE_C8(c, 64), NIBBLE_C8(c, 72),
            NIBBLE_C8(c, 80), NIBBLE_C8(c, 88), NIBBLE_C8(c, 96), NIBBLE_C8(c, 104),
            NIBBLE_C8(c, 112), NIBBLE_C8(c, 120));
}

}  // namespace nibble::cuda
