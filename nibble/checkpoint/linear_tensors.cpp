#include "nibble/checkpoint/linear_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"

namespace nibble {
namespace {

constexpr int64_t kNvfp4Block = 16;  // columns with one scale
constexpr int64_t kFp8Block = 128;   // rows and columns with one scale

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string tensor_name(std::string_view module, std::string_view suffix) {
  return fmt::format("{}.{}", module, suffix);
}

// "model.layers.3.mlp.up_proj.weight in model-00002-of-00004.safetensors".
std::string place(const TensorInfo& info) {
  return info.shard.empty() ? info.name : fmt::format("{} in {}", info.name, info.shard);
}

Status check_tensor(const CheckpointSource& source, const std::string& name, DType dtype,
                    const Shape& expected) {
  const TensorInfo* info = source.find(name);
  if (info == nullptr) return not_found(fmt::format("the checkpoint has no tensor {}", name));
  if (info->dtype != dtype) {
    return corrupt(fmt::format("{} has dtype {}, expected {}", place(*info),
                               dtype_name(info->dtype), dtype_name(dtype)));
  }
  if (info->shape != expected) {
    return corrupt(fmt::format("{} has shape {}, expected {}", place(*info),
                               info->shape.to_string(), expected.to_string()));
  }
  return {};
}

Status check_scalar(const CheckpointSource& source, const std::string& name) {
  const TensorInfo* info = source.find(name);
  if (info == nullptr) return not_found(fmt::format("the checkpoint has no tensor {}", name));
  if (info->dtype != DType::kF32 && info->dtype != DType::kBf16) {
    return corrupt(fmt::format("{} has dtype {}, expected F32 or BF16", place(*info),
                               dtype_name(info->dtype)));
  }
  if (info->shape != Shape{} && info->shape != Shape{1}) {
    return corrupt(
        fmt::format("{} has shape {}, expected [] or [1]", place(*info), info->shape.to_string()));
  }
  return {};
}

// A positive finite scalar. check_scalar has passed.
Result<float> read_scalar(const CheckpointSource& source, const std::string& name) {
  const TensorView view = NIBBLE_TRY(source.read(name));
  float value = 0;
  if (view.dtype == DType::kF32) {
    std::memcpy(&value, view.bytes.data(), sizeof value);
  } else {
    uint16_t half = 0;
    std::memcpy(&half, view.bytes.data(), sizeof half);
    value = bf16_to_float(half);
  }
  if (!std::isfinite(value) || value <= 0) {
    return corrupt(fmt::format("{} is {}, expected a positive finite number",
                               place(*source.find(name)), value));
  }
  return value;
}

Status read_nvfp4_scalars(const CheckpointSource& source, std::string_view module,
                          LinearTensors& linear) {
  linear.global_scale = NIBBLE_TRY(read_scalar(source, tensor_name(module, "weight_scale_2")));
  linear.input_scale = NIBBLE_TRY(read_input_scale(source, module));
  return {};
}

// The index of the first byte that `bad` holds for, or -1. Whole chunks are tested without
// branches, which the compiler turns into vector code: scales are a ninth of a checkpoint.
template <typename Bad>
int64_t find_byte(std::span<const std::byte> bytes, Bad bad) {
  constexpr size_t kChunk = 4096;
  for (size_t begin = 0; begin < bytes.size(); begin += kChunk) {
    const auto chunk = bytes.subspan(begin, std::min(kChunk, bytes.size() - begin));
    uint8_t any = 0;
    for (const std::byte byte : chunk) any |= static_cast<uint8_t>(bad(static_cast<uint8_t>(byte)));
    if (any == 0) continue;
    for (size_t i = 0; i < chunk.size(); ++i) {
      if (bad(static_cast<uint8_t>(chunk[i]))) return static_cast<int64_t>(begin + i);
    }
  }
  return -1;
}

// `view` is a slice [rows, cols] of the tensor that begins at first_row, first_col.
Status check_codes(const TensorInfo& info, const TensorView& view, bool is_scale,
                   int64_t first_row = 0, int64_t first_col = 0) {
  // E4M3: 0x7F and 0xFF are NaN; a block scale may not be negative either (0x80 is -0).
  const int64_t at =
      is_scale ? find_byte(view.bytes, [](uint8_t code) { return code >= 0x7f; })
               : find_byte(view.bytes, [](uint8_t code) { return (code & 0x7f) == 0x7f; });
  if (at < 0) return {};
  const auto code = static_cast<uint8_t>(view.bytes[static_cast<size_t>(at)]);
  return corrupt(fmt::format("{} holds the code 0x{:02x} ({}) at row {}, column {}", place(info),
                             code, (code & 0x7f) == 0x7f ? "NaN" : "a negative scale",
                             first_row + at / view.shape[1], first_col + at % view.shape[1]));
}

Status check_positive(const TensorInfo& info, const TensorView& view, int64_t first_row = 0,
                      int64_t first_col = 0) {
  const float* values = view.data<float>();
  const int64_t count = view.shape.num_elements();
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i]) || values[i] <= 0) {
      return corrupt(fmt::format(
          "{} holds {} at row {}, column {}, expected positive finite scales", place(info),
          values[i], first_row + i / view.shape[1], first_col + i % view.shape[1]));
    }
  }
  return {};
}

// A rectangle of a matrix of elements of `element` bytes, each of which stands for row_grain x
// col_grain logical ones (a scale of a block; or half a byte, as col_grain 2 for NVFP4's codes).
TensorView cut(const TensorView& whole, const LinearSlice& slice, int64_t row_grain,
               int64_t col_grain, std::vector<std::byte>& storage) {
  const int64_t element = dtype_size(whole.dtype);
  const int64_t stride = whole.shape[1] * element;
  const int64_t first_row = slice.first_row / row_grain;
  const int64_t rows = ceil_div(slice.first_row + slice.rows, row_grain) - first_row;
  const int64_t first_col = slice.first_col / col_grain;
  const int64_t cols = ceil_div(slice.first_col + slice.cols, col_grain) - first_col;
  TensorView view{whole.dtype, Shape{rows, cols}, {}};
  if (cols == whole.shape[1]) {
    view.bytes = whole.bytes.subspan(static_cast<size_t>(first_row * stride),
                                     static_cast<size_t>(rows * stride));
    return view;
  }
  const auto row_bytes = static_cast<size_t>(cols * element);
  storage.resize(static_cast<size_t>(rows) * row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(storage.data() + static_cast<size_t>(r) * row_bytes,
                whole.bytes.data() + (first_row + r) * stride + first_col * element, row_bytes);
  }
  view.bytes = storage;
  return view;
}

Status check_slice(std::string_view module, WeightFormat format, int64_t rows, int64_t cols,
                   const LinearSlice& slice) {
  const auto fits = [](int64_t first, int64_t count, int64_t total, int64_t grain) {
    return first >= 0 && count > 0 && first + count <= total && first % grain == 0 &&
           (count % grain == 0 || first + count == total);
  };
  const LinearGrain grain = linear_slice_grain(format);
  if (fits(slice.first_row, slice.rows, rows, grain.rows) &&
      fits(slice.first_col, slice.cols, cols, grain.cols)) {
    return {};
  }
  return invalid_argument(fmt::format(
      "{} is {} [{}, {}]: rows {}..{} and columns {}..{} are no slice of it; rows are cut on "
      "multiples of {}, columns of {}",
      module, weight_format_name(format), rows, cols, slice.first_row, slice.first_row + slice.rows,
      slice.first_col, slice.first_col + slice.cols, grain.rows, grain.cols));
}

Status check_nvfp4_shapes(const CheckpointSource& source, std::string_view module, int64_t rows,
                          int64_t cols) {
  if (cols % kNvfp4Block != 0) {
    return unsupported(fmt::format("{} is NVFP4 with {} columns, which must be a multiple of {}",
                                   module, cols, kNvfp4Block));
  }
  NIBBLE_TRY(check_tensor(source, tensor_name(module, "weight"), DType::kU8, {rows, cols / 2}));
  NIBBLE_TRY(check_tensor(source, tensor_name(module, "weight_scale"), DType::kF8E4m3,
                          {rows, cols / kNvfp4Block}));
  NIBBLE_TRY(check_scalar(source, tensor_name(module, "weight_scale_2")));
  const std::string input_scale = tensor_name(module, "input_scale");
  if (source.find(input_scale) != nullptr) NIBBLE_TRY(check_scalar(source, input_scale));
  return {};
}

}  // namespace

Result<std::optional<float>> read_input_scale(const CheckpointSource& source,
                                              std::string_view module) {
  const std::string name = tensor_name(module, "input_scale");
  if (source.find(name) == nullptr) return std::optional<float>();
  NIBBLE_TRY(check_scalar(source, name));
  const float value = NIBBLE_TRY(read_scalar(source, name));
  return std::optional<float>(value);
}

std::string_view weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "F32";
    case WeightFormat::kBf16:
      return "BF16";
    case WeightFormat::kFp8Block:
      return "FP8 128x128";
    case WeightFormat::kNvfp4:
      return "NVFP4";
  }
  return "?";
}

Result<WeightFormat> find_weight_format(const CheckpointSource& source, std::string_view module) {
  const TensorInfo* weight = source.find(tensor_name(module, "weight"));
  const auto has = [&](std::string_view suffix) {
    return source.find(tensor_name(module, suffix)) != nullptr;
  };
  if (weight == nullptr) {
    if (has("weight_packed")) {
      return unsupported(fmt::format(
          "{} has a weight_packed (compressed-tensors); only the Model Optimizer layout "
          "of NVFP4 is read (weight, weight_scale, weight_scale_2)",
          module));
    }
    return not_found(fmt::format("the checkpoint has no tensor {}.weight", module));
  }
  if (has("pre_quant_scale")) {
    return unsupported(
        fmt::format("{}.pre_quant_scale (AWQ) is not supported, only NVFP4 without "
                    "it",
                    module));
  }
  switch (weight->dtype) {
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kBf16:
      return WeightFormat::kBf16;
    case DType::kF8E4m3:
      if (has("weight_scale_inv")) return WeightFormat::kFp8Block;
      return unsupported(fmt::format(
          "{} is F8_E4M3 without {}.weight_scale_inv; only FP8 with 128x128 block scales is read",
          place(*weight), module));
    case DType::kU8:
      if (has("weight_scale")) return WeightFormat::kNvfp4;
      return corrupt(fmt::format("{} is U8, but there is no {}.weight_scale, as NVFP4 has",
                                 place(*weight), module));
    default:
      return unsupported(
          fmt::format("{} has dtype {}; supported are F32, BF16, F8_E4M3 with "
                      "weight_scale_inv and U8 with weight_scale (NVFP4)",
                      place(*weight), dtype_name(weight->dtype)));
  }
}

Result<WeightFormat> check_linear_shapes(const CheckpointSource& source, std::string_view module,
                                         int64_t expected_rows, int64_t expected_cols) {
  const WeightFormat format = NIBBLE_TRY(find_weight_format(source, module));
  const std::string weight = tensor_name(module, "weight");
  switch (format) {
    case WeightFormat::kF32:
      NIBBLE_TRY(check_tensor(source, weight, DType::kF32, {expected_rows, expected_cols}));
      break;
    case WeightFormat::kBf16:
      NIBBLE_TRY(check_tensor(source, weight, DType::kBf16, {expected_rows, expected_cols}));
      break;
    case WeightFormat::kFp8Block:
      NIBBLE_TRY(check_tensor(source, weight, DType::kF8E4m3, {expected_rows, expected_cols}));
      NIBBLE_TRY(
          check_tensor(source, tensor_name(module, "weight_scale_inv"), DType::kF32,
                       {ceil_div(expected_rows, kFp8Block), ceil_div(expected_cols, kFp8Block)}));
      break;
    case WeightFormat::kNvfp4:
      NIBBLE_TRY(check_nvfp4_shapes(source, module, expected_rows, expected_cols));
      break;
  }
  return format;
}

LinearGrain linear_slice_grain(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kBf16:
      return {1, 1};
    case WeightFormat::kFp8Block:
      return {kFp8Block, kFp8Block};
    case WeightFormat::kNvfp4:
      return {1, kNvfp4Block};
  }
  return {};
}

Result<LinearTensors> read_linear(const CheckpointSource& source, std::string_view module,
                                  int64_t expected_rows, int64_t expected_cols) {
  LinearTensors linear = NIBBLE_TRY(map_linear(source, module, expected_rows, expected_cols));
  if (linear.format == WeightFormat::kFp8Block) {
    const TensorInfo& weight = *source.find(tensor_name(module, "weight"));
    NIBBLE_TRY(check_codes(weight, linear.weight, false));
  }
  return linear;
}

Result<LinearSliceTensors> read_linear_slice(const CheckpointSource& source,
                                             std::string_view module, int64_t expected_rows,
                                             int64_t expected_cols, const LinearSlice& slice) {
  LinearSliceTensors result;
  LinearTensors& linear = result.tensors;
  linear.format = NIBBLE_TRY(check_linear_shapes(source, module, expected_rows, expected_cols));
  NIBBLE_TRY(check_slice(module, linear.format, expected_rows, expected_cols, slice));
  linear.rows = slice.rows;
  linear.cols = slice.cols;
  const std::string name = tensor_name(module, "weight");
  const int64_t codes_per_byte = linear.format == WeightFormat::kNvfp4 ? 2 : 1;
  const TensorView whole = NIBBLE_TRY(source.read(name));
  linear.weight = cut(whole, slice, 1, codes_per_byte, result.storage[0]);
  if (linear.format == WeightFormat::kFp8Block) {
    NIBBLE_TRY(
        check_codes(*source.find(name), linear.weight, false, slice.first_row, slice.first_col));
    const std::string scales = tensor_name(module, "weight_scale_inv");
    const TensorView all_scales = NIBBLE_TRY(source.read(scales));
    linear.scales = cut(all_scales, slice, kFp8Block, kFp8Block, result.storage[1]);
    NIBBLE_TRY(check_positive(*source.find(scales), linear.scales, slice.first_row / kFp8Block,
                              slice.first_col / kFp8Block));
  } else if (linear.format == WeightFormat::kNvfp4) {
    const std::string scales = tensor_name(module, "weight_scale");
    const TensorView all_scales = NIBBLE_TRY(source.read(scales));
    linear.scales = cut(all_scales, slice, 1, kNvfp4Block, result.storage[1]);
    NIBBLE_TRY(check_codes(*source.find(scales), linear.scales, true, slice.first_row,
                           slice.first_col / kNvfp4Block));
    NIBBLE_TRY(read_nvfp4_scalars(source, module, linear));
  }
  return result;
}

Result<LinearTensors> map_linear(const CheckpointSource& source, std::string_view module,
                                 int64_t expected_rows, int64_t expected_cols) {
  LinearTensors linear;
  linear.format = NIBBLE_TRY(check_linear_shapes(source, module, expected_rows, expected_cols));
  linear.rows = expected_rows;
  linear.cols = expected_cols;
  const std::string weight = tensor_name(module, "weight");
  linear.weight = NIBBLE_TRY(source.read(weight));
  if (linear.format == WeightFormat::kFp8Block) {
    const std::string scales = tensor_name(module, "weight_scale_inv");
    linear.scales = NIBBLE_TRY(source.read(scales));
    NIBBLE_TRY(check_positive(*source.find(scales), linear.scales));
  } else if (linear.format == WeightFormat::kNvfp4) {
    const std::string scales = tensor_name(module, "weight_scale");
    linear.scales = NIBBLE_TRY(source.read(scales));
    NIBBLE_TRY(check_codes(*source.find(scales), linear.scales, true));
    NIBBLE_TRY(read_nvfp4_scalars(source, module, linear));
  }
  return linear;
}

void release_linear(const CheckpointSource& source, std::string_view module) {
  for (const char* suffix :
       {"weight", "weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale"}) {
    source.release(tensor_name(module, suffix));
  }
}

bool has_nvfp4_weights(const CheckpointSource& source) {
  return std::any_of(source.tensors().begin(), source.tensors().end(), [&](const TensorInfo& info) {
    return info.dtype == DType::kU8 && info.name.ends_with(".weight") &&
           source.find(info.name + "_scale") != nullptr;
  });
}

}  // namespace nibble
