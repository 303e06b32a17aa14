// What NVFP4 costs: the checkpoint that nibble quantize makes against the FP8 one it was made from,
// over tests/golden/perplexity.txt (held-out conversations, about 20,000 tokens).
#include <gtest/gtest.h>
#include <unistd.h>

#include <iostream>

#include "nibble/base/mapped_file.h"
#include "nibble/engine/generate.h"
#include "nibble/quantize/quantize.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

// A folder that is gone with the test.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_(std::filesystem::path(NIBBLE_BINARY_DIR) /
              (name + "-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::filesystem::path quantized_demo() {
  static const TemporaryFolder folder("quality-nvfp4");
  if (!std::filesystem::exists(folder.path())) {
    const auto report = quantize_checkpoint(testing::demo_checkpoint(), folder.path(), {});
    if (!report) throw std::runtime_error(report.error().message);
  }
  return folder.path();
}

// The conversations, each from its begin-of-sentence token on.
std::vector<std::vector<int32_t>> conversations(const Tokenizer& tokenizer) {
  const auto text = read_text_file(testing::golden("perplexity.txt"));
  const auto ids = tokenizer.encode(*text);
  std::vector<std::vector<int32_t>> documents;
  for (const int32_t id : *ids) {
    if (id == tokenizer.bos_id()) documents.emplace_back();
    documents.back().push_back(id);
  }
  return documents;
}

// Calls visit(log-probabilities of the next token) for every position of every document, in order.
template <typename Visit>
void for_each_position(LoadedModel& model, DType kv_cache_dtype,
                       const std::vector<std::vector<int32_t>>& documents, Visit visit) {
  for (const auto& document : documents) {
    Session session =
        testing::make_session(model, kv_cache_dtype, false, static_cast<int64_t>(document.size()));
    const Status status =
        session.append(document, MlaForm::kExpanded, [&](int64_t, const MatrixView& logits) {
          for (int64_t r = 0; r < logits.rows; ++r) {
            visit(testing::log_softmax({logits.row<float>(r), static_cast<size_t>(logits.cols)}));
          }
        });
    if (!status) throw std::runtime_error(status.error().message);
  }
}

struct Quality {
  double mean_kl = 0;
  double same_top1 = 0;
  int64_t positions = 0;
};

// KL(FP8 || other) and agreement of the most likely token.
class Baseline {
 public:
  Baseline() {
    const auto model = testing::load_model(testing::demo_checkpoint(), "cpu");
    documents_ = conversations(model->tokenizer);
    for_each_position(*model, DType::kBf16, documents_, [&](const std::vector<double>& logprobs) {
      logprobs_.emplace_back(logprobs.begin(), logprobs.end());
    });
  }

  Quality compare(LoadedModel& model, DType kv_cache_dtype) const {
    Quality quality;
    double same = 0;
    size_t at = 0;
    for_each_position(model, kv_cache_dtype, documents_, [&](const std::vector<double>& q) {
      const std::vector<float>& p = logprobs_[at++];
      size_t best_p = 0;
      size_t best_q = 0;
      for (size_t i = 0; i < q.size(); ++i) {
        const double log_p = p[i];
        quality.mean_kl += std::exp(log_p) * (log_p - q[i]);
        if (p[i] > p[best_p]) best_p = i;
        if (q[i] > q[best_q]) best_q = i;
      }
      same += best_p == best_q ? 1 : 0;
    });
    EXPECT_EQ(at, logprobs_.size());
    quality.positions = static_cast<int64_t>(at);
    quality.mean_kl /= static_cast<double>(at);
    quality.same_top1 = same / static_cast<double>(at);
    return quality;
  }

 private:
  std::vector<std::vector<int32_t>> documents_;
  std::vector<std::vector<float>> logprobs_;  // of every position, [vocab_size]
};

const Baseline& baseline() {
  static const Baseline instance;
  return instance;
}

Quality measure(ActivationFormat activation, DType kv_cache_dtype, const char* label) {
  const auto model = testing::load_model(quantized_demo(), "cpu", activation);
  const Quality quality = baseline().compare(*model, kv_cache_dtype);
  std::cout << label << ": mean KL " << quality.mean_kl << ", same top-1 "
            << 100 * quality.same_top1 << " % of " << quality.positions << " positions\n";
  return quality;
}

TEST(Nvfp4Quality, W4A16StaysCloseToFp8) {
  const Quality quality =
      measure(ActivationFormat::kUnquantized, DType::kBf16, "W4A16, BF16 cache");
  EXPECT_GT(quality.positions, 15000);
  EXPECT_LE(quality.mean_kl, 0.0004);
  EXPECT_GE(quality.same_top1, 0.996);
}

TEST(Nvfp4Quality, W4A4StaysCloseToFp8) {
  const Quality quality = measure(ActivationFormat::kNvfp4, DType::kBf16, "W4A4, BF16 cache");
  EXPECT_LE(quality.mean_kl, 0.0009);
  EXPECT_GE(quality.same_top1, 0.993);
}

// As nibble run uses the checkpoint by default: its FP8 cache on top.
TEST(Nvfp4Quality, TheFp8CacheOfTheCheckpointKeepsTheSameBounds) {
  const Quality w4a16 = measure(ActivationFormat::kUnquantized, DType::kF8E4m3, "W4A16, FP8 cache");
  EXPECT_LE(w4a16.mean_kl, 0.0004);
  EXPECT_GE(w4a16.same_top1, 0.996);
}

// The answers of the model card's four prompts in reference.json.
TEST(Nvfp4Quality, TheCardsFourPromptsAreAnsweredAsByTheOriginal) {
  const auto prompts = testing::reference_prompts();
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 32;
  for (const ActivationFormat activation :
       {ActivationFormat::kUnquantized, ActivationFormat::kNvfp4}) {
    const auto model = testing::load_model(quantized_demo(), "cpu", activation);
    for (size_t i = 0; i < 4; ++i) {
      Session session = testing::make_session(*model, model->default_kv_cache_dtype());
      const auto result =
          generate(session, *model, prompts[i].ids, params, [](int32_t) { return true; });
      ASSERT_TRUE(result.has_value()) << result.error().message;
      EXPECT_EQ(model->tokenizer.decode(result->token_ids, false), prompts[i].greedy_text);
    }
  }
}

}  // namespace
}  // namespace nibble
