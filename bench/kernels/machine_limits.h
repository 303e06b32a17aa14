// What the machine can do at best, measured in the same process as what is compared with it.
#pragma once

namespace nibble {

struct MachineLimits {
  double read_gb_per_s;  // reads from memory, the better of one sequential stream a thread and four
  // Products and sums from registers, 2 operations each; 0 where the machine lacks the instruction.
  double fma_gflops;   // binary32 FMA
  double int16_gops;   // vpdpwssd, or vpmaddwd and vpaddd
  double int8_gops;    // vpdpbusd
  double bf16_gflops;  // vdpbf16ps
  double amx_gflops;   // tdpbf16ps, 2 x 2 tiles of sums, rows and weights loaded from L1
};

// Takes about 0.3 s. The widest vectors that the machine has, `threads` threads.
MachineLimits measure_limits(int threads);

}  // namespace nibble
