#include "nibble/kernels/cuda/cublas_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <type_traits>

namespace nibble::cuda {

struct CublasLt::Functions {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
};

namespace {

template <typename Function>
bool load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

std::unique_ptr<CublasLt> CublasLt::find() {
  void* library = nullptr;
  for (const char* name :
       std::initializer_list<const char*>{std::getenv("NIBBLE_CUBLASLT"), "libcublasLt.so.13",
                                          "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
    if (name != nullptr && library == nullptr) library = dlopen(name, RTLD_NOW);
  }
  if (library == nullptr) return nullptr;
  auto functions = std::make_unique<Functions>();
  Functions& f = *functions;
  if (!load(library, "cublasLtCreate", f.create) || !load(library, "cublasLtDestroy", f.destroy) ||
      !load(library, "cublasLtMatmul", f.matmul) ||
      !load(library, "cublasLtMatmulDescCreate", f.desc_create) ||
      !load(library, "cublasLtMatmulDescDestroy", f.desc_destroy) ||
      !load(library, "cublasLtMatmulDescSetAttribute", f.desc_set) ||
      !load(library, "cublasLtMatrixLayoutCreate", f.layout_create) ||
      !load(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy)) {
    return nullptr;
  }
  cublasLtHandle_t handle = nullptr;
  if (f.create(&handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
  std::unique_ptr<CublasLt> found(new CublasLt());
  found->functions_ = std::move(functions);
  found->handle_ = handle;
  return found;
}

CublasLt::~CublasLt() {
  if (handle_ != nullptr) functions_->destroy(static_cast<cublasLtHandle_t>(handle_));
}

bool CublasLt::multiply(const uint16_t* w, int64_t rows, const uint16_t* x, int64_t tokens,
                        int64_t cols, float alpha, float* out, int64_t out_stride,
                        cudaStream_t stream) const {
  const Functions& f = *functions_;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const float beta = 0;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w_layout = nullptr;
  cublasLtMatrixLayout_t x_layout = nullptr;
  cublasLtMatrixLayout_t out_layout = nullptr;
  // In the library's column order: out [rows, tokens] = w' [cols, rows] transposed * x' [cols,
  // tokens].
  const bool done =
      f.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
      f.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) ==
          CUBLAS_STATUS_SUCCESS &&
      f.layout_create(&w_layout, CUDA_R_16BF, static_cast<uint64_t>(cols),
                      static_cast<uint64_t>(rows), cols) == CUBLAS_STATUS_SUCCESS &&
      f.layout_create(&x_layout, CUDA_R_16BF, static_cast<uint64_t>(cols),
                      static_cast<uint64_t>(tokens), cols) == CUBLAS_STATUS_SUCCESS &&
      f.layout_create(&out_layout, CUDA_R_32F, static_cast<uint64_t>(rows),
                      static_cast<uint64_t>(tokens), out_stride) == CUBLAS_STATUS_SUCCESS &&
      f.matmul(static_cast<cublasLtHandle_t>(handle_), desc, &alpha, w, w_layout, x, x_layout,
               &beta, out, out_layout, out, out_layout, nullptr, nullptr, 0,
               stream) == CUBLAS_STATUS_SUCCESS;
  if (desc != nullptr) f.desc_destroy(desc);
  for (cublasLtMatrixLayout_t layout : {w_layout, x_layout, out_layout}) {
    if (layout != nullptr) f.layout_destroy(layout);
  }
  return done;
}

}  // namespace nibble::cuda
