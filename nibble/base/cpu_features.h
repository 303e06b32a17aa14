// What this processor can do, asked once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Levels of instruction sets, each containing the one before. kAvx512 means F, BW, DQ and VL; kAmx
// means tiles with BF16 and 8-bit products, and AVX-512 BF16 and FP16 beside VNNI.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAmx };

// All of them, the lowest first.
inline constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni,
                                   Isa::kAmx};

// The highest level that the processor and the operating system (XCR0) both support. The first call
// asks the system for the use of tiles by this process; where it refuses, kAmx is not there.
Isa detected_isa();

// detected_isa(), or the lower level that the environment variable NIBBLE_ISA names.
// Errors: kInvalidArgument for an unknown name, kUnsupported for a level this machine lacks.
Result<Isa> selected_isa();

// "portable", "avx2", "avx512", "avx512vnni", "amx".
std::string_view isa_name(Isa isa);

// Physical memory and what is free of it now, in bytes; a cgroup's limit counts where it is lower.
struct MemoryInfo {
  uint64_t total_bytes;
  uint64_t available_bytes;
};
MemoryInfo memory_info();

// The same from the files under root/proc and root/sys, which a test may make itself.
MemoryInfo memory_info(const std::filesystem::path& root);

// Processors that this process may run on and has the time of (its affinity mask, and the quota of
// its control group in whole processors), at least 1.
int available_processors();

}  // namespace nibble
