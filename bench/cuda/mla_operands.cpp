#include "bench/cuda/mla_operands.h"

#include <vector>

#include "bench/cuda/gpu_timing.h"

namespace nibble::bench {

MlaOperands mla_operands(Kernels& kernels, int64_t heads, int64_t tokens, cudaStream_t stream) {
  Device& device = kernels.device();
  MlaOperands o;
  o.shape = {heads, 512, 128, 64, 128, 0.13523378f};
  const int64_t rows = heads * 256;
  std::vector<uint16_t> host(static_cast<size_t>(rows * 512));
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<uint16_t>(0x3c00 + i * 31 % 97);
  HostLinear kv_b;
  kv_b.format = LinearFormat::kBf16;
  kv_b.rows = rows;
  kv_b.cols = 512;
  kv_b.data = host.data();
  o.packed = device.allocate(kernels.packed_mla_up_bytes(kv_b.format, o.shape)).value();
  o.weight = kernels.pack_mla_up(kv_b, o.shape, o.packed.data()).value();
  o.q_values = device.allocate(static_cast<size_t>(tokens * heads * 192) * 4).value();
  o.out_values = device.allocate(static_cast<size_t>(tokens * heads * 128) * 4).value();
  fill_normal(o.q_values.as<float>(), tokens * heads * 192, 1, 9, stream);
  o.q = {o.q_values.data(), DType::kF32, tokens, heads * 192, heads * 192};
  o.out = {o.out_values.data(), DType::kF32, tokens, heads * 128, heads * 128};
  return o;
}

}  // namespace nibble::bench
