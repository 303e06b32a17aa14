// The products that are left to cuBLASLt: BF16 by BF16 for many tokens, and on Blackwell NVFP4 by
// NVFP4. The library is looked for at run time: a build needs its headers alone, and a machine
// without it takes the slower way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "nibble/kernels/cuda/fp4_operands.h"

namespace nibble::cuda {

class CublasLt {
 public:
  // Null when libcublasLt.so.13 is not found (NIBBLE_CUBLASLT may name it) or can't be used.
  static std::unique_ptr<CublasLt> find();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // out[t, r] = alpha * sum_k w[r, k] * x[t, k]: w and x BF16 with rows of `cols`, out float with
  // rows of out_stride. False when the library refuses.
  bool multiply(const uint16_t* w, int64_t rows, const uint16_t* x, int64_t tokens, int64_t cols,
                float alpha, float* out, int64_t out_stride, cudaStream_t stream) const;

  // The latents of all positions as keys or values of some heads:
  //   out[h, p, i] = alpha * sum_r w_h[i, r] * latents[p, r], out BF16 [heads, positions, width]
  // w BF16: of each head [rank, width] when `transposed`, else [width, rank]. False as above.
  struct Latents {
    const uint16_t* data = nullptr;  // BF16 [positions, rank]
    int64_t positions = 0;
    int64_t rank = 0;
  };
  bool expand_heads(const Latents& latents, const uint16_t* w, bool transposed, int64_t width,
                    int64_t heads, float alpha, uint16_t* out, cudaStream_t stream) const;

  // multiply() of two sides in NVFP4 (fp4_operands.h), alpha the product of their global scales.
  // `workspace` is kFp4Workspace bytes of device memory. NEVER RUN: only Blackwell has it.
  enum class Fp4Result { kDone, kRefused, kFailed };  // kRefused: no algorithm for it here
  static constexpr int64_t kFp4Workspace = int64_t{32} << 20;
  Fp4Result multiply_fp4(const Fp4Matrix& w, const Fp4Matrix& x, float alpha, float* out,
                         int64_t out_stride, void* workspace, cudaStream_t stream) const;

 private:
  CublasLt() = default;
  struct Functions;
  std::unique_ptr<Functions> functions_;
  void* handle_ = nullptr;
};

}  // namespace nibble::cuda
