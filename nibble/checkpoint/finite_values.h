// The values of norms and biases, which no code or scale check covers.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// Whether all values of `view`, the data of `info`, are finite; tensors other than F32 and BF16
// pass. A NaN in a norm spoils every logit; in e_score_correction_bias it would silently move
// tokens to other experts. Errors: kCorrupt naming tensor, value and element.
Status check_finite(const TensorInfo& info, const TensorView& view);

// The same for whole elements of it, `bytes`, that begin `offset` bytes behind the tensor's first.
Status check_finite_part(const TensorInfo& info, std::span<const std::byte> bytes, size_t offset);

}  // namespace nibble
