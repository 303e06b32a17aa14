// The one product that is left to cuBLASLt: BF16 by BF16 for many tokens. The library is looked for
// at run time: a build needs its headers alone, and a machine without it takes the slower way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

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

 private:
  CublasLt() = default;
  struct Functions;
  std::unique_ptr<Functions> functions_;
  void* handle_ = nullptr;
};

}  // namespace nibble::cuda
