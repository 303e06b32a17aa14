#include "bench/cuda/gpu_timing.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::bench {
namespace {

constexpr int kSamples = 9;
constexpr double kWarmUs = 30'000;

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
    check_cuda(cudaEventCreate(&end_), "cudaEventCreate");
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }
  // Microseconds of what `work` launches.
  double time(const std::function<void()>& work) {
    check_cuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check_cuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return static_cast<double>(ms) * 1000;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

Samples summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2], times.back()};
}

void check_device(Device& device) {
  const Status status = device.synchronize();
  if (!status) {
    fmt::print(stderr, "bench_cuda: {}\n", status.error().message);
    std::exit(1);
  }
}

// What of cuBLASLt is used, found at run time: the benchmark is built and run without it, too.
struct CublasLt {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;

  static const CublasLt* find() {
    static CublasLt found;
    void* library = nullptr;
    for (const char* name : std::initializer_list<const char*>{
             "libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
             std::getenv("NIBBLE_CUBLASLT")}) {
      if (name != nullptr && library == nullptr) library = dlopen(name, RTLD_NOW);
    }
    if (library == nullptr) return nullptr;
    const auto load = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    const bool all = load(found.create, "cublasLtCreate") && load(found.matmul, "cublasLtMatmul") &&
                     load(found.desc_create, "cublasLtMatmulDescCreate") &&
                     load(found.desc_set, "cublasLtMatmulDescSetAttribute") &&
                     load(found.layout_create, "cublasLtMatrixLayoutCreate");
    return all ? &found : nullptr;
  }
};

}  // namespace

void check_cuda(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  fmt::print(stderr, "bench_cuda: {}: {}\n", call, cudaGetErrorString(code));
  std::exit(1);
}

Samples time_graph(Device& device, const std::function<void()>& work) {
  cudaStream_t stream = cuda_stream(device);
  work();  // workspaces grow here, not during capture
  check_device(device);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  work();
  check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  const auto replay = [&] { check_cuda(cudaGraphLaunch(exec, stream), "cudaGraphLaunch"); };
  Timer timer(stream);
  // Until the clocks are those of a busy GPU.
  double warm_us = 0;
  for (int i = 0; i < 3 || warm_us < kWarmUs; ++i) warm_us += timer.time(replay);
  check_device(device);
  std::vector<double> times;
  for (int i = 0; i < kSamples; ++i) times.push_back(timer.time(replay));
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
  check_device(device);
  return summary(std::move(times));
}

Samples time_launches(Device& device, const std::function<void()>& work, int repeat) {
  for (int i = 0; i < 3; ++i) work();
  check_device(device);
  Timer timer(cuda_stream(device));
  std::vector<double> times;
  for (int i = 0; i < kSamples; ++i) {
    times.push_back(timer.time([&] {
      for (int r = 0; r < repeat; ++r) work();
    }) / repeat);
  }
  check_device(device);
  return summary(std::move(times));
}

double copy_bandwidth(Device& device) {
  constexpr size_t kBytes = size_t{4} << 30;
  const Buffer from = device.allocate(kBytes).value();
  const Buffer to = device.allocate(kBytes).value();
  fill_bf16(from.data(), kBytes / 2, 1, cuda_stream(device));
  const Samples samples = time_launches(
      device,
      [&] {
        check_cuda(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice,
                                   cuda_stream(device)),
                   "cudaMemcpyAsync");
      },
      3);
  return 2 * static_cast<double>(kBytes) / samples.median / 1000;
}

double gemm_rate(Device& device) {
  const CublasLt* const lt = CublasLt::find();
  if (lt == nullptr) return 0;
  constexpr int64_t kN = 8192;
  cublasLtHandle_t handle = nullptr;
  if (lt->create(&handle) != CUBLAS_STATUS_SUCCESS) return 0;
  const Buffer a = device.allocate(kN * kN * 2).value();
  const Buffer b = device.allocate(kN * kN * 2).value();
  const Buffer c = device.allocate(kN * kN * 2).value();
  fill_bf16(a.data(), kN * kN, 2, cuda_stream(device));
  fill_bf16(b.data(), kN * kN, 3, cuda_stream(device));
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  lt->desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  lt->desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
  lt->layout_create(&layout, CUDA_R_16BF, kN, kN, kN);
  const float one = 1;
  const float zero = 0;
  bool failed = false;
  const Samples samples = time_launches(
      device,
      [&] {
        failed |= lt->matmul(handle, desc, &one, a.data(), layout, b.data(), layout, &zero,
                             c.data(), layout, c.data(), layout, nullptr, nullptr, 0,
                             cuda_stream(device)) != CUBLAS_STATUS_SUCCESS;
      },
      5);
  return failed ? 0
                : 2e-6 * static_cast<double>(kN * kN) * static_cast<double>(kN) / samples.median;
}

BenchWeight random_weight(Kernels& kernels, LinearFormat format, int64_t rows, int64_t cols,
                          uint64_t seed) {
  BenchWeight w;
  const size_t bytes = kernels.packed_bytes(format, rows, cols);
  w.buffer = kernels.device().allocate(bytes).value();
  fill_packed(w.buffer.data(), bytes, format, seed, cuda_stream(kernels.device()));
  w.weight.format = format;
  w.weight.rows = rows;
  w.weight.cols = cols;
  w.weight.data = w.buffer.data();
  w.weight.global_scale = 1e-6f;
  return w;
}

}  // namespace nibble::bench
