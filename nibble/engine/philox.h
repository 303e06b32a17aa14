// Philox4x32-10, the counter-based random generator: a draw depends on its counter alone, so that
// batching, preemption and speculation can't change it. Source: Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011), with its Random123 test vectors.
#pragma once

#include <array>
#include <cstdint>

namespace nibble {

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// What a draw is for; part of the counter.
enum class RandomStream : uint32_t { kDraw = 0, kAcceptance = 1, kResidual = 2, kDraft = 3 };

// Uniform in [0, 1), a multiple of 2^-24: key = seed, counter = {position, stream, choice, 0}, the
// 24 high bits of the first word.
double philox_uniform(uint64_t seed, uint32_t position, RandomStream stream, uint32_t choice);

}  // namespace nibble
