// BF16 arithmetic that the kernels share, bit by bit; with collectives, too, so it lies by the
// device.
#pragma once

#include "nibble/device/cuda/bf16_parts.cuh"
