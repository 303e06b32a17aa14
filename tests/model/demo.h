// The demo checkpoint on a backend, and what independent programs computed from it.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/engine/session.h"

namespace nibble::testing {

inline std::filesystem::path demo_checkpoint() {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "models/demo";
}
inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden" / name;
}

inline std::unique_ptr<LoadedModel> load_model(
    const std::filesystem::path& directory, const std::string& backend,
    ActivationFormat activation = ActivationFormat::kUnquantized) {
  ModelOptions options;
  options.backend = backend;
  options.nvfp4_activation = activation;
  // Else bounds would depend on whether the processor has AMX, whose default is BF16 activations:
  // oracle_test.cpp has tests of those.
  options.cpu_exact_activations = true;
  auto model = LoadedModel::load(directory, options);
  if (!model) throw std::runtime_error(model.error().message);
  return *std::move(model);
}

inline Session make_session(LoadedModel& model, DType kv_cache_dtype, bool with_mtp = false,
                            int64_t max_tokens = 1024) {
  SessionOptions options;
  options.kv_cache_dtype = kv_cache_dtype;
  options.max_tokens = max_tokens;
  options.with_mtp = with_mtp;
  auto session = Session::create(model, options);
  if (!session) throw std::runtime_error(session.error().message);
  return *std::move(session);
}

// One prompt of oracle/demo/reference.json.
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<int32_t> greedy;
  std::string greedy_text;
};

inline std::vector<Prompt> reference_prompts() {
  std::ifstream file(golden("demo/reference.json"));
  std::vector<Prompt> prompts;
  for (const auto& entry : nlohmann::json::parse(file)) {
    prompts.push_back(
        {entry.at("text"), entry.at("ids"), entry.at("greedy"), entry.at("greedy_text")});
  }
  return prompts;
}

// Rows copied out of a LogitsSink or HiddenObserver.
struct Rows {
  std::vector<float> values;
  int64_t cols = 0;
  int64_t count() const { return cols == 0 ? 0 : static_cast<int64_t>(values.size()) / cols; }
  std::span<const float> row(int64_t r) const {
    return std::span(values).subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
  }
  void append(const MatrixView& view) {
    cols = view.cols;
    for (int64_t r = 0; r < view.rows; ++r) {
      values.insert(values.end(), view.row<float>(r), view.row<float>(r) + view.cols);
    }
  }
};

// ||a - b|| / ||b||; infinite when the sizes differ or a value is not finite.
inline double relative_error(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

inline int64_t argmax_of(std::span<const float> row) {
  return std::max_element(row.begin(), row.end()) - row.begin();
}

// log softmax of a row, in binary64.
inline std::vector<double> log_softmax(std::span<const float> row) {
  const double peak = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value) - peak);
  std::vector<double> out;
  for (const float value : row) out.push_back(static_cast<double>(value) - peak - std::log(sum));
  return out;
}

}  // namespace nibble::testing
