// What the machine can do at best, measured in the same process as what is compared with it.
#pragma once

namespace nibble {

struct MachineLimits {
  double read_gb_per_s;  // sequential reads from memory, four streams a thread
  double gflops;         // binary32 FMAs from registers, 2 operations each
};

// Takes about 0.2 s. The widest vectors that the machine has, `threads` threads.
MachineLimits measure_limits(int threads);

}  // namespace nibble
