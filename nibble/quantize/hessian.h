// H = sum x x' over the inputs of a linear layer, and its factors: what local-hessian and GPTQ
// minimise e' H e with.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/base/thread_pool.h"
#include "nibble/quantize/activations.h"

namespace nibble {

// The 16x16 blocks on H's diagonal, float [cols / 16, 16, 16], each with a hundredth of its mean
// diagonal added to the diagonal. Blocks of a module without inputs are identities.
Result<std::vector<float>> block_hessians(const Activations& activations, std::string_view module,
                                          int64_t cols, ThreadPool& pool);

// H in whole, float [cols, cols], of which the lower triangle is filled. Not damped. All zero for a
// module without inputs.
Result<std::vector<float>> full_hessian(const Activations& activations, std::string_view module,
                                        int64_t cols, ThreadPool& pool);

// Adds a hundredth of the mean diagonal, writes H = (U + 1) D (U + 1)' with U strictly upper
// triangular, and puts U into the upper triangle. The lower one is used up. A zero H gives U = 0.
void factor_hessian(std::vector<float>* hessian, int64_t cols, ThreadPool& pool);

}  // namespace nibble
