// nibble inspect --tensor: one tensor's place, shape and statistics.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/inspect_report.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

// Of finite values, beside the counts of the others.
struct Statistics {
  int64_t count = 0;
  int64_t zeros = 0;
  int64_t nans = 0;
  int64_t infinities = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;
  double sum_of_squares = 0;

  void add(double value) {
    ++count;
    if (std::isnan(value)) {
      ++nans;
    } else if (std::isinf(value)) {
      ++infinities;
    } else {
      if (value == 0) ++zeros;
      min = std::min(min, value);
      max = std::max(max, value);
      sum += value;
      sum_of_squares += value * value;
    }
  }
  int64_t num_finite() const { return count - nans - infinities; }
};

// Nothing for dtypes that no tensor of a model here has.
std::optional<Statistics> statistics_of(const TensorView& view, bool packed_e2m1) {
  Statistics statistics;
  const auto count = static_cast<size_t>(view.shape.num_elements());
  for (size_t i = 0; i < count; ++i) {
    if (view.dtype == DType::kF32) {
      statistics.add(static_cast<double>(view.data<float>()[i]));
    } else if (view.dtype == DType::kBf16) {
      statistics.add(static_cast<double>(bf16_to_float(view.data<uint16_t>()[i])));
    } else if (view.dtype == DType::kF8E4m3) {
      statistics.add(static_cast<double>(kE4m3Values[view.data<uint8_t>()[i]]));
    } else if (view.dtype == DType::kU8 && packed_e2m1) {
      const uint8_t byte = view.data<uint8_t>()[i];
      statistics.add(static_cast<double>(kE2m1Values[byte & 0xf]));
      statistics.add(static_cast<double>(kE2m1Values[byte >> 4]));
    } else {
      return std::nullopt;
    }
  }
  return statistics;
}

}  // namespace

Result<std::string> tensor_report(const SafetensorsSource& source, std::string_view name,
                                  bool json) {
  const TensorInfo* info = source.find(name);
  if (info == nullptr) {
    std::vector<std::string> names;
    for (const TensorInfo& other : source.tensors()) names.push_back(other.name);
    return not_found(fmt::format("the checkpoint has no tensor {}{}", json_quote(name),
                                 did_you_mean(name, names)));
  }
  const TensorView view = NIBBLE_TRY(source.read(name));
  const std::string format = stored_format(source, *info);
  const auto statistics = statistics_of(view, format == "NVFP4");

  JsonValue report = JsonValue::object();
  report.set("name", JsonValue::string(info->name));
  report.set("shard", JsonValue::string(printable(info->shard)));
  report.set("dtype", JsonValue::string(std::string(dtype_name(info->dtype))));
  report.set("format", JsonValue::string(format));
  report.set("shape", JsonValue::string(info->shape.to_string()));
  report.set("bytes", JsonValue::integer(static_cast<int64_t>(view.bytes.size())));
  if (statistics) {
    const auto finite = static_cast<double>(statistics->num_finite());
    report.set("values", JsonValue::integer(statistics->count));
    report.set("zeros", JsonValue::integer(statistics->zeros));
    report.set("nans", JsonValue::integer(statistics->nans));
    report.set("infinities", JsonValue::integer(statistics->infinities));
    if (statistics->num_finite() > 0) {
      report.set("min", JsonValue::number(statistics->min));
      report.set("max", JsonValue::number(statistics->max));
      report.set("mean", JsonValue::number(statistics->sum / finite));
      report.set("rms", JsonValue::number(std::sqrt(statistics->sum_of_squares / finite)));
    }
  }
  if (json) return to_json(report) + "\n";
  std::string text;
  for (const auto& [key, value] : *report.as_object()) {
    const std::string* string = value.as_string();
    text += fmt::format("{:<12}{}\n", key, string == nullptr ? to_json(value, -1) : *string);
  }
  return printable(text);
}

}  // namespace nibble
