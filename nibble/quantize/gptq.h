// Quantization with error compensation: the error of a column is made up for by the columns behind
// it, as far as their inputs go together.
#pragma once

#include <cstdint>

#include "nibble/base/result.h"
#include "nibble/base/thread_pool.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

struct GptqMatrix {
  const float* values;  // [rows, cols]
  int64_t rows;
  int64_t cols;          // a multiple of 16
  const float* factors;  // [cols, cols], U above the diagonal, from factor_hessian
  const float* blocks;   // [cols / 16, 16, 16] for kLocalHessian, otherwise null
};

// For each column k in order, code = e2m1((w_k + sum_{j<k} (w_j - w'_j) U_jk) / d), w' the
// dequantized values. A block's scale is chosen by `mode` from the values that its sixteen columns
// have when it begins. Source: GPTQ (arXiv 2210.17323) in the form of QuIP's LDLQ (arXiv
// 2307.13304, theorem 6), which needs no inverse of H.
//
//   packed [rows, cols / 2], scales [rows, cols / 16]
//
// The bits do not depend on the number of threads. Errors: those of quantize_nvfp4_block_column.
Status quantize_gptq(const GptqMatrix& matrix, float global_scale, Nvfp4Mode mode, uint8_t* packed,
                     uint8_t* scales, ThreadPool& pool);

}  // namespace nibble
