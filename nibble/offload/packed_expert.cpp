#include "nibble/offload/packed_expert.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/model/linear_format.h"

namespace nibble {
namespace {

constexpr uint64_t kMatrixAlignment = 256;  // what Device::allocate gives

uint64_t aligned(uint64_t bytes) {
  return (bytes + kMatrixAlignment - 1) / kMatrixAlignment * kMatrixAlignment;
}

struct ExpertMatrix {
  std::string module;
  int64_t rows;
  int64_t cols;
};

std::array<ExpertMatrix, 3> matrices_of(const ModelConfig& config, int layer, int expert) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.experts.{}.", layer, expert);
  return {{{prefix + "gate_proj", config.moe_intermediate_size, config.hidden_size},
           {prefix + "up_proj", config.moe_intermediate_size, config.hidden_size},
           {prefix + "down_proj", config.hidden_size, config.moe_intermediate_size}}};
}

// Packs into `destination` in host memory, whatever memory the backend packs in.
Result<LinearWeight> pack_on_host(Kernels& kernels, const HostLinear& host,
                                  std::span<std::byte> destination) {
  Device& device = kernels.device();
  if (device.is_host()) {
    return kernels.pack(host, ActivationFormat::kUnquantized, destination.data());
  }
  const Buffer buffer = NIBBLE_TRY(device.allocate(destination.size()));
  LinearWeight weight =
      NIBBLE_TRY(kernels.pack(host, ActivationFormat::kUnquantized, buffer.data()));
  NIBBLE_TRY(device.copy_to_host(destination, buffer.data()));
  for (const void** const pointer : {&weight.data, &weight.scales}) {
    if (*pointer == nullptr) continue;
    *pointer =
        destination.data() + (static_cast<const std::byte*>(*pointer) - buffer.as<std::byte>());
  }
  return weight;
}

}  // namespace

std::vector<int> moe_layers(const ModelConfig& config, bool with_mtp) {
  std::vector<int> layers;
  const int end = config.num_hidden_layers + (with_mtp && config.num_nextn_predict_layers > 0);
  for (int layer = 0; layer < end; ++layer) {
    if (config.is_moe_layer(layer)) layers.push_back(layer);
  }
  return layers;
}

Result<uint64_t> expert_record_bytes(const CheckpointSource& source, const ModelConfig& config,
                                     const Kernels& kernels, int layer, int expert,
                                     uint64_t* formats) {
  uint64_t bytes = kExpertAlignment;
  for (const ExpertMatrix& matrix : matrices_of(config, layer, expert)) {
    const WeightFormat format =
        NIBBLE_TRY(check_linear_shapes(source, matrix.module, matrix.rows, matrix.cols));
    bytes += aligned(kernels.packed_bytes(linear_format(format), matrix.rows, matrix.cols));
    if (formats != nullptr) *formats |= uint64_t{1} << static_cast<int>(linear_format(format));
  }
  return align_expert_bytes(bytes);
}

Result<ExpertInputScales> expert_input_scales(const CheckpointSource& source,
                                              const ModelConfig& config, int layer) {
  ExpertInputScales scales{0, 0};
  for (int e = 0; e < config.n_routed_experts; ++e) {
    const auto matrices = matrices_of(config, layer, e);
    for (size_t i = 0; i < matrices.size(); ++i) {
      const std::optional<float> value = NIBBLE_TRY(read_input_scale(source, matrices[i].module));
      float& largest = i < 2 ? scales.input : scales.product;
      // Without one a matrix counts as 1, as when the layer is loaded whole.
      largest = std::max(largest, value.value_or(1.0f));
    }
  }
  return scales;
}

Status pack_expert(const CheckpointSource& source, const ModelConfig& config, Kernels& kernels,
                   int layer, int expert, const ExpertInputScales& scales,
                   std::span<std::byte> record) {
  NIBBLE_CHECK(record.size() % kExpertAlignment == 0);
  ExpertRecordHeader header;
  header.layer = layer;
  header.expert = expert;
  uint64_t offset = kExpertAlignment;
  const auto matrices = matrices_of(config, layer, expert);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const ExpertMatrix& matrix = matrices[i];
    const LinearTensors tensors =
        NIBBLE_TRY(read_linear(source, matrix.module, matrix.rows, matrix.cols));
    const HostLinear host = host_linear(tensors, i < 2 ? scales.input : scales.product);
    const uint64_t packed = kernels.packed_bytes(host.format, host.rows, host.cols);
    const uint64_t end = offset + aligned(packed);
    NIBBLE_CHECK(end <= record.size());
    std::memset(record.data() + offset + packed, 0, end - offset - packed);
    const auto weight = pack_on_host(kernels, host, record.subspan(offset, packed));
    if (!weight) return tl::unexpected(Error(weight.error()).with_context(matrix.module));
    release_linear(source, matrix.module);
    const auto place = [&](const void* pointer) -> uint64_t {
      if (pointer == nullptr) return 0;
      const auto at = static_cast<const std::byte*>(pointer) - record.data();
      NIBBLE_CHECK(at >= static_cast<ptrdiff_t>(offset) && at <= static_cast<ptrdiff_t>(end));
      // Some backends point past the data where there are no scales.
      return static_cast<uint64_t>(at) == end ? 0 : static_cast<uint64_t>(at);
    };
    ExpertMatrixEntry& entry = header.matrices[i];
    entry.format = static_cast<uint32_t>(weight->format);
    entry.has_input_scale = tensors.input_scale.has_value() ? 1 : 0;
    entry.rows = weight->rows;
    entry.cols = weight->cols;
    entry.data_offset = place(weight->data);
    entry.scales_offset = place(weight->scales);
    entry.global_scale = weight->global_scale;
    entry.input_scale = weight->input_scale;
    offset = end;
  }
  std::memset(record.data() + offset, 0, record.size() - offset);
  seal_record(header, record);
  return {};
}

}  // namespace nibble
