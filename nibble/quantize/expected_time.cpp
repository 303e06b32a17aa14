#include "nibble/quantize/expected_time.h"

#include <chrono>
#include <vector>

#include "nibble/numeric/add_products.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

// Times `work` is done in a second, by doing it for a moment.
template <typename Work>
double rate_of(Work work) {
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  double rounds = 0;
  while (seconds < 0.05) {
    work();
    ++rounds;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return rounds / seconds;
}

double weights_per_second(Nvfp4Mode mode) {
  constexpr int64_t kRows = 16;
  constexpr int64_t kCols = 2048;
  std::vector<float> values(kRows * kCols);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = round_to_bf16(static_cast<float>(i * 2654435761u % 4093) / 4093.0f - 0.5f);
  }
  std::vector<uint8_t> packed(values.size() / 2);
  std::vector<uint8_t> scales(values.size() / kNvfp4BlockSize);
  const std::vector<float> hessian(kNvfp4BlockSize * kNvfp4BlockSize, 0.1f);
  const double rounds = rate_of([&] {
    if (mode != Nvfp4Mode::kLocalHessian) {
      (void)quantize_nvfp4_rows(values.data(), kRows, kCols, 1e-3f, mode, packed.data(),
                                scales.data());
      return;
    }
    for (int64_t c = 0; c < kCols / kNvfp4BlockSize; ++c) {
      (void)quantize_nvfp4_block_column(
          {values.data() + c * kNvfp4BlockSize, kRows, kCols, packed.data() + c * 8, kCols / 2,
           scales.data() + c, kCols / kNvfp4BlockSize},
          1e-3f, mode, hessian.data());
    }
  });
  return rounds * kRows * kCols;
}

// Multiplications and additions of add_products, which the forward pass does at a rate like it.
double operations_per_second() {
  constexpr int64_t kDepth = 128;
  constexpr int64_t kRows = 64;
  constexpr int64_t kCols = 1024;
  const std::vector<float> a(kDepth * kRows, 0.5f);
  const std::vector<float> b(kDepth * kCols, 0.5f);
  std::vector<float> y(kRows * kCols);
  const double rounds = rate_of([&] {
    add_products({a.data(), kRows, b.data(), kCols, kDepth, kRows, kCols, y.data(), kCols});
  });
  return rounds * 2 * kDepth * kRows * kCols;
}

double num_tokens(const QuantizeOptions& options) {
  double tokens = 0;
  for (const auto& sample : options.samples) tokens += static_cast<double>(sample.size());
  return tokens;
}

// Of the forward pass for one token; the MLPs' first halves are run once more for what down_proj
// reads.
double forward_operations(const ModelConfig& c) {
  const double hidden = static_cast<double>(c.hidden_size);
  const double heads = static_cast<double>(c.num_attention_heads);
  const double attention =
      hidden * static_cast<double>(c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim) +
      heads * static_cast<double>(c.qk_head_dim() * c.q_lora_rank) +
      heads * static_cast<double>((c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank) +
      heads * static_cast<double>(c.v_head_dim) * hidden;
  double operations = 0;
  for (int layer = 0; layer < c.num_hidden_layers + c.num_nextn_predict_layers; ++layer) {
    const int64_t width = c.is_moe_layer(layer) ? c.moe_intermediate_size *
                                                      (c.num_experts_per_tok + c.n_shared_experts)
                                                : c.intermediate_size;
    operations += 2 * (attention + 5 * hidden * static_cast<double>(width));
  }
  return operations;
}

// Of H, its factors and the compensation, for every matrix.
double gptq_operations(const ConversionPlan& plan, const ModelConfig& config, double tokens) {
  double operations = 0;
  for (const ConversionJob& job : plan.jobs) {
    if (job.kind != JobKind::kQuantize) continue;
    const bool is_expert = job.linears.front().module.find(".mlp.experts.") != std::string::npos;
    const double share = is_expert ? static_cast<double>(config.num_experts_per_tok) /
                                         static_cast<double>(config.n_routed_experts)
                                   : 1.0;
    const auto cols = static_cast<double>(job.linears.front().cols);
    operations += cols * cols * (tokens * share + cols / 3);
    for (const LinearSpec& linear : job.linears) {
      operations += cols * cols * static_cast<double>(linear.rows);
    }
  }
  return operations;
}

}  // namespace

double expected_seconds(const ConversionPlan& plan, const ModelConfig& config,
                        const QuantizeOptions& options, int threads) {
  const double weights = static_cast<double>(plan.quantized_output_bytes) * 16 / 9;
  double seconds = weights / weights_per_second(options.algorithm.mode);
  // Decoding, hashing and writing go at about a gigabyte of source a second and thread.
  seconds += static_cast<double>(plan.source_bytes) / 1e9;
  if (options.samples.empty()) return seconds / threads;
  const double tokens = num_tokens(options);
  double operations = tokens * forward_operations(config) * (options.feed_quantized ? 1.6 : 1.0);
  if (options.algorithm.gptq) operations += gptq_operations(plan, config, tokens);
  return (seconds + operations / operations_per_second()) / threads;
}

}  // namespace nibble
