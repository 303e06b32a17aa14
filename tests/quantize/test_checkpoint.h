// Small checkpoints that a test can break in one place, and a look at what a conversion left
// behind.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "nibble/checkpoint/model_tensors.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"
#include "tests/checkpoint/test_configs.h"

namespace nibble::testing {

inline std::filesystem::path demo_source() {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "models/demo";
}

inline nlohmann::ordered_json json_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::ordered_json::parse(file);
}

struct TestTensor {
  DType dtype = DType::kF32;
  Shape shape;
  std::vector<std::byte> bytes;

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

// A whole checkpoint in memory.
struct TestCheckpoint {
  std::string config{kTinyConfig};
  std::map<std::string, TestTensor> tensors;

  // One file, config.json and a tokenizer.
  void write(const std::filesystem::path& directory) const {
    std::filesystem::create_directories(directory);
    std::ofstream(directory / "config.json") << config;
    std::ofstream(directory / "tokenizer.json") << "{\"version\": \"1.0\"}";
    std::vector<TensorInfo> infos;
    for (const auto& [name, tensor] : tensors)
      infos.push_back({name, tensor.dtype, tensor.shape, {}});
    auto writer = SafetensorsWriter::create(directory / "model.safetensors", infos).value();
    for (const auto& [name, tensor] : tensors) {
      EXPECT_TRUE(writer.write(name, tensor.bytes).has_value()) << name;
    }
    EXPECT_TRUE(writer.commit().has_value());
  }
};

// Seeded random weights of kTinyConfig (or another config) in the given layout, kFp8 or kBf16.
inline TestCheckpoint tiny_checkpoint(CheckpointLayout layout = CheckpointLayout::kFp8,
                                      uint32_t seed = 1) {
  TestCheckpoint checkpoint;
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  const auto config = parse_config(checkpoint.config, "config.json").value();
  const auto stored = stored_tensors(config, layout).value();
  for (const TensorInfo& info : stored) {
    TestTensor tensor{info.dtype, info.shape, {}};
    const auto count = static_cast<size_t>(info.shape.num_elements());
    tensor.bytes.resize(count * static_cast<size_t>(dtype_size(info.dtype)));
    for (size_t i = 0; i < count; ++i) {
      if (info.dtype == DType::kF8E4m3) {
        tensor.data<uint8_t>()[i] = float_to_e4m3(4000 * normal(rng));
      } else if (info.dtype == DType::kBf16) {
        tensor.data<uint16_t>()[i] = float_to_bf16(normal(rng));
      } else {
        tensor.data<float>()[i] = 0.0003f * (1 + std::abs(normal(rng)));
      }
    }
    checkpoint.tensors.emplace(info.name, std::move(tensor));
  }
  return checkpoint;
}

// Neither the output nor a partial folder: the parent holds exactly `expected` entries.
inline int entries_in(const std::filesystem::path& directory) {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
  return count;
}

inline std::vector<std::byte> tensor_bytes_of(const CheckpointSource& source,
                                              const std::string& name) {
  const auto view = source.read(name);
  if (!view) {
    ADD_FAILURE() << view.error().message;
    return {};
  }
  return {view->bytes.begin(), view->bytes.end()};
}

}  // namespace nibble::testing
