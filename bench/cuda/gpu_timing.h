// Times of GPU work, and the GPU's own limits, measured in the same process.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nibble/kernels/kernels.h"

namespace nibble::bench {

// Aborts with the call's name.
void check_cuda(cudaError_t code, const char* call);

// A copy of the values in device memory.
template <typename T>
Buffer on_device(Device& device, const std::vector<T>& values) {
  Buffer buffer = device.allocate(values.size() * sizeof(T)).value();
  if (!device.copy_to_device(buffer.data(), std::as_bytes(std::span(values)))) {
    check_cuda(cudaErrorUnknown, "a copy to the device");
  }
  return buffer;
}

struct Samples {
  double min = 0;
  double median = 0;
  double max = 0;
};

// Microseconds of one call of `work`, which launches on the device's stream: 9 samples.
// As a graph: `work` is captured once and replayed, so that no time is lost between launches.
Samples time_graph(Device& device, const std::function<void()>& work);
// As it is, `repeat` calls a sample.
Samples time_launches(Device& device, const std::function<void()>& work, int repeat);

// Bytes read and written a second by a copy within the device's memory, in GB/s.
double copy_bandwidth(Device& device);

// TFLOP/s of an 8192 x 8192 x 8192 product of BF16 by cuBLASLt on random data; 0 when the library
// is not on this machine.
double gemm_rate(Device& device);

// Fills packed weights with random bits that are finite numbers.
void fill_packed(void* data, size_t bytes, LinearFormat format, uint64_t seed, cudaStream_t stream);
// Floats of about normal distribution.
void fill_normal(float* data, int64_t count, float deviation, uint64_t seed, cudaStream_t stream);
void fill_bf16(void* data, int64_t count, uint64_t seed, cudaStream_t stream);

// A weight in the backend's layout, of random bits.
struct BenchWeight {
  Buffer buffer;
  LinearWeight weight;
};
BenchWeight random_weight(Kernels& kernels, LinearFormat format, int64_t rows, int64_t cols,
                          uint64_t seed);

struct Limits {
  double copy = 0;  // GB/s
  double gemm = 0;  // TFLOP/s
};

void bench_linear(Kernels& kernels, const Limits& limits);
void bench_moe(Kernels& kernels, const Limits& limits);
void bench_mla(Kernels& kernels, const Limits& limits);
void bench_prompts(Kernels& kernels, const Limits& limits);
void bench_layers(Kernels& kernels, const Limits& limits);
void bench_sampling(Kernels& kernels);

// A thread for each of tp_size GPUs; the layers' weights must fit.
struct RanksOptions {
  int tp_size = 1;
  int ep_size = 1;
  bool enable_attention_dp = false;
  int dense_layers = 3;
  int moe_layers = 58;
  bool alone = false;     // rank 0 without the others, on one GPU
  bool dispatch = false;  // nothing but both ways of tokens to the experts of other ranks
};
void bench_ranks(const RanksOptions& options);

// The engine over the same: requests of random tokens, an answer's length fixed.
struct EngineBenchOptions {
  RanksOptions ranks;
  int num_drafts = 0;
  double forced_acceptance_length = 1;  // with drafts: random weights accept nothing
  int input_len = 1024;
  int output_len = 128;
  std::vector<int64_t> batch_sizes;
  std::string tokenizer = "models/demo";  // any folder with one: the text means nothing
};
void bench_engine(const EngineBenchOptions& options);

// A slice of R1 whose experts lie in GPU memory and RAM (offload_bench.cpp).
void bench_offload(int layers);
// All of R1 over num_gpus GPUs, layer after layer, with the rest of its experts in RAM.
void bench_offload_whole(int num_gpus, double ram_gb);

}  // namespace nibble::bench
