#include "nibble/cli/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/inspection.h"
#include "nibble/checkpoint/json.h"
#include "nibble/cli/cli_common.h"
#include "nibble/engine/session.h"
#include "nibble/quantize/weight_comparison.h"

namespace nibble {
namespace {

constexpr size_t kWorst = 10;
constexpr size_t kDocumentTokens = 512;  // of a text that is not cut into documents by BOS

struct LogitsComparison {
  int64_t positions = 0;
  int64_t predicted = 0;  // positions that have a next token
  double kl = 0;
  double same_top1 = 0;
  double nll_a = 0;
  double nll_b = 0;

  double mean_kl() const { return kl / static_cast<double>(positions); }
  double top1() const { return same_top1 / static_cast<double>(positions); }
  double perplexity_a() const { return std::exp(nll_a / static_cast<double>(predicted)); }
  double perplexity_b() const { return std::exp(nll_b / static_cast<double>(predicted)); }
};

// The text's tokens, a new document at each BOS.
Result<std::vector<std::vector<int32_t>>> documents_of(const std::string& file,
                                                       const Tokenizer& tokenizer, int64_t limit) {
  const std::string text = NIBBLE_TRY(read_text_file(file));
  auto ids = NIBBLE_TRY(tokenizer.encode(text));
  if (limit > 0 && static_cast<int64_t>(ids.size()) > limit) ids.resize(static_cast<size_t>(limit));
  if (ids.empty()) return invalid_argument(fmt::format("{} has no tokens", file));
  const auto bos = tokenizer.bos_id();
  const bool has_documents = bos && ids.front() == *bos;
  std::vector<std::vector<int32_t>> documents;
  for (const int32_t id : ids) {
    const bool begins = has_documents
                            ? id == *bos
                            : documents.empty() || documents.back().size() >= kDocumentTokens;
    if (begins) documents.emplace_back();
    if (begins && !has_documents && bos) documents.back().push_back(*bos);
    documents.back().push_back(id);
  }
  return documents;
}

std::vector<float> all_log_softmax(const std::vector<float>& logits, size_t vocab) {
  std::vector<float> out(logits.size());
  for (size_t begin = 0; begin < logits.size(); begin += vocab) {
    const float peak = *std::max_element(logits.begin() + static_cast<int64_t>(begin),
                                         logits.begin() + static_cast<int64_t>(begin + vocab));
    double sum = 0;
    for (size_t i = begin; i < begin + vocab; ++i) sum += std::exp(double{logits[i]} - peak);
    const double log_sum = std::log(sum) + peak;
    for (size_t i = begin; i < begin + vocab; ++i) {
      out[i] = static_cast<float>(double{logits[i]} - log_sum);
    }
  }
  return out;
}

Result<std::vector<float>> log_probabilities(LoadedModel& model, std::span<const int32_t> ids) {
  SessionOptions options;
  options.max_tokens = static_cast<int64_t>(ids.size());
  Session session = NIBBLE_TRY(Session::create(model, options));
  std::vector<float> logits;
  NIBBLE_TRY(session.append(ids, MlaForm::kExpanded, [&](int64_t, const MatrixView& rows) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      logits.insert(logits.end(), rows.row<float>(r), rows.row<float>(r) + rows.cols);
    }
  }));
  return all_log_softmax(logits, static_cast<size_t>(model.config.vocab_size));
}

void add_document(const std::vector<float>& a, const std::vector<float>& b,
                  std::span<const int32_t> ids, LogitsComparison* sum) {
  const size_t vocab = a.size() / ids.size();
  for (size_t t = 0; t < ids.size(); ++t) {
    const float* const p = a.data() + t * vocab;
    const float* const q = b.data() + t * vocab;
    for (size_t i = 0; i < vocab; ++i) {
      sum->kl += std::exp(double{p[i]}) * (double{p[i]} - double{q[i]});
    }
    const auto best_p = std::max_element(p, p + vocab) - p;
    const auto best_q = std::max_element(q, q + vocab) - q;
    sum->same_top1 += best_p == best_q ? 1 : 0;
    ++sum->positions;
    if (t + 1 == ids.size()) continue;
    sum->nll_a -= p[ids[t + 1]];
    sum->nll_b -= q[ids[t + 1]];
    ++sum->predicted;
  }
}

Result<LogitsComparison> compare_logits(const std::filesystem::path& a,
                                        const std::filesystem::path& b,
                                        const VerifyOptions& options) {
  ModelOptions model_options;
  model_options.threads = options.threads;
  model_options.load_mtp = false;
  const auto original = NIBBLE_TRY(LoadedModel::load(a, model_options));
  if (options.w4a4) model_options.nvfp4_activation = ActivationFormat::kNvfp4;
  const auto quantized = NIBBLE_TRY(LoadedModel::load(b, model_options));
  if (original->config.vocab_size != quantized->config.vocab_size) {
    return invalid_argument(fmt::format("the vocabularies have {} and {} tokens",
                                        original->config.vocab_size, quantized->config.vocab_size));
  }
  LogitsComparison sum;
  const auto documents =
      NIBBLE_TRY(documents_of(options.text, original->tokenizer, options.tokens));
  for (const auto& document : documents) {
    const auto p = NIBBLE_TRY(log_probabilities(*original, document));
    const auto q = NIBBLE_TRY(log_probabilities(*quantized, document));
    add_document(p, q, document, &sum);
  }
  return sum;
}

struct Totals {
  double signal = 0;
  double error = 0;
  int64_t blocks = 0;
  int64_t saturated = 0;
  int64_t zero = 0;
};

Totals totals_of(const std::vector<LinearComparison>& linears) {
  Totals totals;
  for (const LinearComparison& linear : linears) {
    totals.signal += linear.signal;
    totals.error += linear.error;
    totals.blocks += linear.num_blocks;
    totals.saturated += linear.saturated_blocks;
    totals.zero += linear.zero_blocks;
  }
  return totals;
}

double total_db(const Totals& totals) {
  return totals.error > 0 ? 10 * std::log10(totals.signal / totals.error) : INFINITY;
}

void print_text(const std::vector<LinearComparison>& linears, const std::vector<size_t>& order,
                const std::vector<std::string>& problems,
                const std::optional<LogitsComparison>& logits) {
  const Totals totals = totals_of(linears);
  std::string text;
  for (const std::string& problem : problems) {
    text += fmt::format("{:<18}{}\n", "problem", printable(problem));
  }
  text +=
      fmt::format("{:<18}{}\n", "layout",
                  problems.empty() ? "no problem" : fmt::format("{} problems", problems.size()));
  text += fmt::format("{:<18}{} linears, {:.2f} dB signal over error\n", "weights",
                      format_count(linears.size()), total_db(totals));
  text += fmt::format("{:<18}{} of {} saturated (scale 448), {} all zero\n", "blocks",
                      format_count(static_cast<uint64_t>(totals.saturated)),
                      format_count(static_cast<uint64_t>(totals.blocks)),
                      format_count(static_cast<uint64_t>(totals.zero)));
  for (size_t i = 0; i < std::min(kWorst, order.size()); ++i) {
    const LinearComparison& linear = linears[order[i]];
    text += fmt::format("{:<18}{:6.2f} dB  {} {}\n", i == 0 ? "worst" : "", linear.sqnr_db(),
                        linear.format, linear.module);
  }
  if (logits) {
    text += fmt::format("{:<18}mean KL {:.6f}, same likeliest token {:.2f} % of {} positions\n",
                        "logits", logits->mean_kl(), 100 * logits->top1(),
                        format_count(static_cast<uint64_t>(logits->positions)));
    text += fmt::format("{:<18}{:.5f} -> {:.5f}\n", "perplexity", logits->perplexity_a(),
                        logits->perplexity_b());
  }
  print(text);
}

void print_json(const std::vector<LinearComparison>& linears,
                const std::vector<std::string>& problems,
                const std::optional<LogitsComparison>& logits) {
  const Totals totals = totals_of(linears);
  JsonValue problem_list = JsonValue::array();
  for (const std::string& problem : problems) {
    problem_list.push_back(JsonValue::string(printable(problem)));
  }
  JsonValue list = JsonValue::array();
  for (const LinearComparison& linear : linears) {
    const double db = linear.sqnr_db();
    list.push_back(
        JsonValue::object({{"module", JsonValue::string(linear.module)},
                           {"format", JsonValue::string(linear.format)},
                           {"sqnr_db", std::isfinite(db) ? JsonValue::number(db) : JsonValue()},
                           {"largest_error", JsonValue::number(linear.largest_error)},
                           {"num_blocks", JsonValue::integer(linear.num_blocks)},
                           {"saturated_blocks", JsonValue::integer(linear.saturated_blocks)},
                           {"zero_blocks", JsonValue::integer(linear.zero_blocks)}}));
  }
  const double db = total_db(totals);
  JsonValue report =
      JsonValue::object({{"problems", std::move(problem_list)},
                         {"sqnr_db", std::isfinite(db) ? JsonValue::number(db) : JsonValue()},
                         {"num_blocks", JsonValue::integer(totals.blocks)},
                         {"saturated_blocks", JsonValue::integer(totals.saturated)},
                         {"zero_blocks", JsonValue::integer(totals.zero)},
                         {"linears", std::move(list)}});
  if (logits) {
    report.set("positions", JsonValue::integer(logits->positions));
    report.set("mean_kl", JsonValue::number(logits->mean_kl()));
    report.set("same_top1", JsonValue::number(logits->top1()));
    report.set("perplexity_a", JsonValue::number(logits->perplexity_a()));
    report.set("perplexity_b", JsonValue::number(logits->perplexity_b()));
  }
  print(to_json(report) + "\n");
}

}  // namespace

Status verify_quantized(const std::filesystem::path& a, const std::filesystem::path& b,
                        const VerifyOptions& options) {
  const auto source = NIBBLE_TRY(SafetensorsSource::open(a));
  const ModelConfig config = NIBBLE_TRY(load_config(a));
  const Inspection inspection = NIBBLE_TRY(inspect_checkpoint(b, CheckValues::kYes, false));
  const int threads = options.threads > 0 ? options.threads : available_processors();
  const auto linears = NIBBLE_TRY(compare_weights(*source, *inspection.source, config, threads));
  std::vector<size_t> order(linears.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t i, size_t j) { return linears[i].sqnr_db() < linears[j].sqnr_db(); });
  std::optional<LogitsComparison> logits;
  if (!options.text.empty()) logits = NIBBLE_TRY(compare_logits(a, b, options));
  if (options.json) {
    print_json(linears, inspection.problems, logits);
  } else {
    print_text(linears, order, inspection.problems, logits);
  }
  if (inspection.problems.empty()) return {};
  return corrupt(fmt::format("{} has {} problems", b.string(), inspection.problems.size()));
}

}  // namespace nibble
