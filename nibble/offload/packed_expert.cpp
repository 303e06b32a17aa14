#include "nibble/offload/packed_expert.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/checkpoint/linear_tensors.h"

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

LinearFormat linear_format_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return LinearFormat::kF32;
    case WeightFormat::kBf16:
      return LinearFormat::kBf16;
    case WeightFormat::kFp8Block:
      return LinearFormat::kFp8Block;
    case WeightFormat::kNvfp4:
      return LinearFormat::kNvfp4;
  }
  return LinearFormat::kF32;
}

Result<float> read_scalar(const CheckpointSource& source, const std::string& name) {
  const TensorView view = NIBBLE_TRY(source.read(name));
  float value = 0;
  if (view.dtype == DType::kF32 && view.bytes.size() == sizeof(float)) {
    value = *view.data<float>();
  } else if (view.dtype == DType::kBf16 && view.bytes.size() == 2) {
    value = std::bit_cast<float>(uint32_t{*view.data<uint16_t>()} << 16);
  } else {
    return corrupt(fmt::format("{} is no single F32 or BF16 number", name));
  }
  if (!std::isfinite(value) || value <= 0) {
    return corrupt(fmt::format("{} is {}, expected a positive number", name, value));
  }
  return value;
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
    bytes += aligned(kernels.packed_bytes(linear_format_of(format), matrix.rows, matrix.cols));
    if (formats != nullptr) *formats |= uint64_t{1} << static_cast<int>(linear_format_of(format));
  }
  return align_expert_bytes(bytes);
}

Result<ExpertInputScales> expert_input_scales(const CheckpointSource& source,
                                              const ModelConfig& config, int layer) {
  ExpertInputScales scales{0, 0};
  for (int e = 0; e < config.n_routed_experts; ++e) {
    const auto matrices = matrices_of(config, layer, e);
    for (size_t i = 0; i < matrices.size(); ++i) {
      const std::string name = matrices[i].module + ".input_scale";
      // Without one a matrix counts as 1, as when the layer is loaded whole.
      float value = 1;
      if (source.find(name) != nullptr) value = NIBBLE_TRY(read_scalar(source, name));
      float& largest = i < 2 ? scales.input : scales.product;
      largest = std::max(largest, value);
    }
  }
  return scales;
}

Status pack_expert(const CheckpointSource& source, const ModelConfig& config,
                   const Kernels& kernels, int layer, int expert, const ExpertInputScales& scales,
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
    const HostLinear host{linear_format_of(tensors.format),
                          tensors.rows,
                          tensors.cols,
                          tensors.weight.bytes.data(),
                          tensors.scales.bytes.data(),
                          tensors.global_scale,
                          i < 2 ? scales.input : scales.product};
    const uint64_t packed = kernels.packed_bytes(host.format, host.rows, host.cols);
    const uint64_t end = offset + aligned(packed);
    NIBBLE_CHECK(end <= record.size());
    std::memset(record.data() + offset + packed, 0, end - offset - packed);
    const auto weight = kernels.pack(host, ActivationFormat::kUnquantized, record.data() + offset);
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
