#include "nibble/checkpoint/synthetic_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"

namespace nibble {
namespace {

// splitmix64: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Nearly normal, mean 0, variance 1: the sum of four uniform numbers.
  float normal() {
    const uint64_t bits = next();
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>(bits >> (16 * i) & 0xffff);
    // Each has mean 32767.5 and variance 2^32 / 12, so the sum's standard deviation is
    // 2^16/sqrt(3).
    return (static_cast<float>(sum) - 131070.0F) * (1.7320508F / 65536.0F);
  }

 private:
  uint64_t state_;
};

// FNV-1a.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

// An E4M3 code with magnitude 0.25 .. 3.75. Squares average 2.8: mantissas 8/8 .. 15/8 (2.13) times
// exponents 1/16, 1/4, 1, 4 (1.33).
uint8_t e4m3_code(Random& random) { return static_cast<uint8_t>(0x28 + random.next() % 0x20); }
constexpr float kE4m3Rms = 1.68F;

// The E2M1 magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6, equally often: squares average 8.56.
constexpr float kE2m1Rms = 2.93F;

// The value of every element of a scalar or of a scale's mean, from its name's ending.
void fill_f32(const TensorInfo& info, float cols, Random& random, float* out) {
  const int64_t count = info.shape.num_elements();
  for (int64_t i = 0; i < count; ++i) {
    if (info.name.ends_with("_scale_inv")) {
      const float spread = 1.0F + 0.25F * static_cast<float>(random.next() % 256) / 256.0F;
      out[i] = spread / (kE4m3Rms * std::sqrt(cols));
    } else if (info.name.ends_with("_scale_2")) {
      out[i] = 1.0F / (kE4m3Rms * kE2m1Rms * std::sqrt(cols));
    } else if (info.name.ends_with(".input_scale")) {
      out[i] = 8.0F / 2688.0F;  // activations up to 8
    } else if (info.name.ends_with(".k_scale") || info.name.ends_with(".v_scale")) {
      out[i] = 1.0F;
    } else {
      out[i] = 0.1F * random.normal();  // e_score_correction_bias
    }
  }
}

void fill_bf16(const TensorInfo& info, Random& random, uint16_t* out) {
  const int64_t count = info.shape.num_elements();
  const bool is_norm = info.shape.rank() == 1;
  const bool is_embedding = info.name.ends_with("embed_tokens.weight");
  const float scale = is_norm        ? 0.1F
                      : is_embedding ? 1.0F
                                     : 1.0F / std::sqrt(static_cast<float>(info.shape[1]));
  for (int64_t i = 0; i < count; ++i) {
    out[i] = float_to_bf16((is_norm ? 1.0F : 0.0F) + scale * random.normal());
  }
}

void fill_bytes(const TensorInfo& info, Random& random, uint8_t* out) {
  const int64_t count = info.shape.num_elements();
  const bool is_scale = info.name.ends_with("_scale");
  for (int64_t i = 0; i < count; ++i) {
    if (info.dtype == DType::kU8) {
      out[i] = static_cast<uint8_t>(random.next());
    } else {
      out[i] = e4m3_code(random);
      if (!is_scale && random.next() % 2 == 1) out[i] |= 0x80;
    }
  }
}

}  // namespace

Result<std::unique_ptr<SyntheticSource>> SyntheticSource::create(const ModelConfig& config,
                                                                 CheckpointLayout layout,
                                                                 uint64_t seed) {
  std::unique_ptr<SyntheticSource> source(new SyntheticSource());
  source->tensors_ = NIBBLE_TRY(stored_tensors(config, layout));
  source->seed_ = seed;
  return source;
}

const TensorInfo* SyntheticSource::find(std::string_view name) const {
  const auto it =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& info, std::string_view n) { return info.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

Result<TensorView> SyntheticSource::read(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return not_found(fmt::format("the checkpoint has no tensor {}", name));
  const auto size = static_cast<size_t>(info->shape.num_elements() * dtype_size(info->dtype));
  const std::lock_guard lock(mutex_);
  std::vector<uint64_t>& data = data_[info->name];
  if (data.empty()) {
    data.resize((size + 7) / 8);
    // The MTP layer's copies take the name of what they copy.
    std::string_view seed_name = info->name;
    if (seed_name.ends_with(".embed_tokens.weight")) seed_name = "model.embed_tokens.weight";
    if (seed_name.ends_with(".shared_head.head.weight")) seed_name = "lm_head.weight";
    Random random(seed_ ^ hash_name(seed_name));
    auto* bytes = reinterpret_cast<uint8_t*>(data.data());
    if (info->dtype == DType::kF32) {
      // A scale's size depends on its weight's columns.
      std::string weight = info->name;
      for (const char* suffix : {"_scale_inv", "_scale_2"}) {
        if (weight.ends_with(suffix)) weight.resize(weight.size() - std::strlen(suffix));
      }
      const TensorInfo* owner = find(weight);
      const int64_t stored = owner->shape.rank() == 2 ? owner->shape[1] : 1;
      const int64_t cols = owner->dtype == DType::kU8 ? 2 * stored : stored;
      fill_f32(*info, static_cast<float>(cols), random, reinterpret_cast<float*>(bytes));
    } else if (info->dtype == DType::kBf16) {
      fill_bf16(*info, random, reinterpret_cast<uint16_t*>(bytes));
    } else {
      fill_bytes(*info, random, bytes);
    }
  }
  return TensorView{info->dtype, info->shape, std::as_bytes(std::span(data)).first(size)};
}

void SyntheticSource::release(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = data_.find(name);
  if (it != data_.end()) data_.erase(it);
}

}  // namespace nibble
