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
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
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
      !load(library, "cublasLtMatrixLayoutSetAttribute", f.layout_set) ||
      !load(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy) ||
      !load(library, "cublasLtMatmulPreferenceCreate", f.preference_create) ||
      !load(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy) ||
      !load(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set) ||
      !load(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic)) {
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

bool CublasLt::expand_heads(const Latents& latents, const uint16_t* w, bool transposed,
                            int64_t width, int64_t heads, float alpha, uint16_t* out,
                            cudaStream_t stream) const {
  const Functions& f = *functions_;
  const auto ok = [](cublasStatus_t status) { return status == CUBLAS_STATUS_SUCCESS; };
  // In column order: out_h [width, positions] = w_h [width, rank] latents' [rank, positions].
  const cublasOperation_t operation = transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  const float beta = 0;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w_layout = nullptr;
  cublasLtMatrixLayout_t x_layout = nullptr;
  cublasLtMatrixLayout_t out_layout = nullptr;
  const auto layout = [&](cublasLtMatrixLayout_t& to, int64_t rows, int64_t cols,
                          int64_t batch_stride) {
    const auto count = static_cast<int32_t>(heads);
    return ok(f.layout_create(&to, CUDA_R_16BF, static_cast<uint64_t>(rows),
                              static_cast<uint64_t>(cols), rows)) &&
           ok(f.layout_set(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count))) &&
           ok(f.layout_set(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                           sizeof(batch_stride)));
  };
  const bool done =
      ok(f.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
      ok(f.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &operation, sizeof(operation))) &&
      layout(w_layout, transposed ? width : latents.rank, transposed ? latents.rank : width,
             latents.rank * width) &&
      layout(x_layout, latents.rank, latents.positions, 0) &&
      layout(out_layout, width, latents.positions, latents.positions * width) &&
      ok(f.matmul(static_cast<cublasLtHandle_t>(handle_), desc, &alpha, w, w_layout, latents.data,
                  x_layout, &beta, out, out_layout, out, out_layout, nullptr, nullptr, 0, stream));
  if (desc != nullptr) f.desc_destroy(desc);
  for (cublasLtMatrixLayout_t made : {w_layout, x_layout, out_layout}) {
    if (made != nullptr) f.layout_destroy(made);
  }
  return done;
}

CublasLt::Fp4Result CublasLt::multiply_fp4(const Fp4Matrix& w, const Fp4Matrix& x, float alpha,
                                           float* out, int64_t out_stride, void* workspace,
                                           cudaStream_t stream) const {
  const Functions& f = *functions_;
  const auto handle = static_cast<cublasLtHandle_t>(handle_);
  const auto ok = [](cublasStatus_t status) { return status == CUBLAS_STATUS_SUCCESS; };
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cublasLtMatmulMatrixScale_t block_scales = CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
  const void* const w_scales = w.scales;
  const void* const x_scales = x.scales;
  const uint64_t workspace_bytes = kFp4Workspace;
  const float beta = 0;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w_layout = nullptr;
  cublasLtMatrixLayout_t x_layout = nullptr;
  cublasLtMatrixLayout_t out_layout = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    return ok(f.desc_set(desc, name, &value, sizeof(value)));
  };
  const auto layout = [&](cublasLtMatrixLayout_t& to, cudaDataType_t type, int64_t rows,
                          int64_t cols, int64_t stride) {
    return ok(f.layout_create(&to, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                              stride));
  };
  // As in multiply(): the only form that block scales have.
  const bool described = ok(f.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
                         set(CUBLASLT_MATMUL_DESC_TRANSA, transposed) &&
                         set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, block_scales) &&
                         set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, block_scales) &&
                         set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales) &&
                         set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales) &&
                         layout(w_layout, CUDA_R_4F_E2M1, w.cols, w.rows, w.cols) &&
                         layout(x_layout, CUDA_R_4F_E2M1, x.cols, x.rows, x.cols) &&
                         layout(out_layout, CUDA_R_32F, w.rows, x.rows, out_stride) &&
                         ok(f.preference_create(&preference)) &&
                         ok(f.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace_bytes, sizeof(workspace_bytes)));
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  Fp4Result result = Fp4Result::kRefused;
  if (described &&
      ok(f.heuristic(handle, desc, w_layout, x_layout, out_layout, out_layout, preference, 1,
                     &found, &count)) &&
      count > 0) {
    const cublasStatus_t status =
        f.matmul(handle, desc, &alpha, w.codes, w_layout, x.codes, x_layout, &beta, out, out_layout,
                 out, out_layout, &found.algo, workspace, workspace_bytes, stream);
    result = ok(status)                              ? Fp4Result::kDone
             : status == CUBLAS_STATUS_NOT_SUPPORTED ? Fp4Result::kRefused
                                                     : Fp4Result::kFailed;
  }
  if (preference != nullptr) f.preference_destroy(preference);
  if (desc != nullptr) f.desc_destroy(desc);
  for (cublasLtMatrixLayout_t made : {w_layout, x_layout, out_layout}) {
    if (made != nullptr) f.layout_destroy(made);
  }
  return result;
}

}  // namespace nibble::cuda
