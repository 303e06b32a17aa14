// How many parameters and bytes a model has, by what they are for: from config.json and a format,
// or from the headers of a checkpoint. Source of the shapes: planner.md section 2.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/plan/plan_error.h"

namespace nibble {

enum class WeightKind {
  kEmbedding,
  kHead,
  kQAProj,
  kQBProj,
  kKvAProj,
  kKvBProj,
  kOProj,
  kNorms,
  kDenseMlp,
  kSharedExperts,
  kRoutedExperts,
  kRouter,
  kRouterBias,
  kEhProj,  // the MTP layer's projection of two hidden states into one
  kOther,   // tensors whose names no DeepSeek-V3 model has
};
inline constexpr int kNumWeightKinds = 15;
inline constexpr std::array<WeightKind, kNumWeightKinds> kAllWeightKinds = {
    WeightKind::kEmbedding,     WeightKind::kHead,          WeightKind::kQAProj,
    WeightKind::kQBProj,        WeightKind::kKvAProj,       WeightKind::kKvBProj,
    WeightKind::kOProj,         WeightKind::kNorms,         WeightKind::kDenseMlp,
    WeightKind::kSharedExperts, WeightKind::kRoutedExperts, WeightKind::kRouter,
    WeightKind::kRouterBias,    WeightKind::kEhProj,        WeightKind::kOther};

// "embed", "attn_q_a", "routed_experts", ...: the names of planner.md's golden file and the JSON.
std::string_view weight_kind_name(WeightKind kind);

// How one number of a matrix is stored; which arithmetic it can use follows from it.
enum class Storage { kBf16, kF32, kFp8, kNvfp4, kGguf };

// Which Storage the matrices of each kind have; what a quantizer chose.
struct Recipe {
  std::array<Storage, kNumWeightKinds>
      main;                                  // of the layers 0 .. num_hidden_layers - 1 and outside
  std::array<Storage, kNumWeightKinds> mtp;  // of the MTP layers
};

// All matrices of one kind and shape. A vector has cols = 1.
struct MatrixGroup {
  WeightKind kind = WeightKind::kNorms;
  bool mtp = false;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t count = 0;

  int64_t parameters() const { return rows * cols * count; }
};

// Every matrix and vector of the model, in a few lines. Sums equal those of model_tensors().
std::vector<MatrixGroup> matrix_groups(const ModelConfig& config);

struct WeightCell {
  int64_t parameters = 0;
  int64_t bytes = 0;  // scales included
  Storage storage = Storage::kBf16;
};

// Elements as they lie in the files, by dtype: what the model hub counts. A U8 holds two weights.
struct StoredElements {
  int64_t u8 = 0;
  int64_t f8_e4m3 = 0;
  int64_t bf16 = 0;
  int64_t f32 = 0;
  int64_t total() const { return u8 + f8_e4m3 + bf16 + f32; }
};

struct ModelWeights {
  std::array<WeightCell, kNumWeightKinds> main{};
  std::array<WeightCell, kNumWeightKinds> mtp{};
  StoredElements elements;
  int64_t expert_bytes = 0;  // one routed expert of one layer of the main model

  const WeightCell& cell(WeightKind kind, bool of_mtp = false) const {
    return (of_mtp ? mtp : main)[static_cast<size_t>(kind)];
  }
  WeightCell& cell(WeightKind kind, bool of_mtp = false) {
    return (of_mtp ? mtp : main)[static_cast<size_t>(kind)];
  }

  int64_t main_parameters() const;
  int64_t mtp_parameters() const;        // as stored
  int64_t mtp_block_parameters() const;  // without the copies of embedding and head
  // Read for one token: everything but the embedding table and the experts not chosen.
  int64_t active_parameters(const ModelConfig& config) const;
  int64_t file_bytes() const;
  // In memory: without MTP layer, or with it, sharing the main model's embedding and head.
  int64_t resident_bytes(bool with_mtp) const;
};

// Bytes of a matrix [rows, cols], scales included: BF16 2rc; FP8 rc + 4 for each 128x128 block;
// NVFP4 rc/2 + rc/16 + 8. Storage::kGguf has no size by shape (see gguf_weights).
// Source: planner.md section 3.
int64_t matrix_bytes(Storage storage, int64_t rows, int64_t cols);

// The model in a recipe. Errors: impossible when NVFP4 meets columns that are no multiple of 16.
PlanResult<ModelWeights> weights_of(const ModelConfig& config, const Recipe& recipe);

// The main model at `bits` per parameter throughout, as a GGUF level averages over its file; GGUF
// files of this model have neither MTP layer nor router bias.
ModelWeights gguf_weights(const ModelConfig& config, double bits);

// What a checkpoint holds, from its headers alone: bytes to the byte, parameters from the config.
// A kind stored in several ways gets the Storage of most of its bytes. A tensor that no DeepSeek-V3
// model has counts as kOther, and its name is put into `strangers`.
ModelWeights weights_in(const ModelConfig& config, std::span<const TensorInfo> tensors,
                        std::vector<std::string>* strangers);

}  // namespace nibble
