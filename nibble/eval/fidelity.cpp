#include "nibble/eval/fidelity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/engine/session.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/reference_file.h"
#include "nibble/tokenizer/chat_template.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMinContext = 8;
constexpr double kSureMargin = 0.1;  // between the reference's likeliest two tokens

// Log-probabilities of one row of logits, rounded to float once, so that equal logits give equal
// values wherever they are computed.
void log_softmax(const float* logits, size_t vocab, std::vector<float>* out) {
  const float peak = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (size_t i = 0; i < vocab; ++i) sum += std::exp(double{logits[i]} - peak);
  const double log_sum = std::log(sum) + peak;
  out->resize(vocab);
  for (size_t i = 0; i < vocab; ++i) {
    (*out)[i] = static_cast<float>(double{logits[i]} - log_sum);
  }
}

// Calls `row` with the log-probabilities behind each of the rows first .. last of `ids`.
Status for_rows(LoadedModel& model, std::span<const int32_t> ids, int64_t first, int64_t last,
                const std::function<Status(int64_t row, const std::vector<float>&)>& take) {
  SessionOptions options;
  options.max_tokens = static_cast<int64_t>(ids.size());
  Session session = NIBBLE_TRY(Session::create(model, options));
  std::vector<float> log_probs;
  Status status;
  NIBBLE_TRY(session.append(ids, MlaForm::kExpanded, [&](int64_t begin, const MatrixView& rows) {
    for (int64_t r = 0; r < rows.rows && status; ++r) {
      if (begin + r < first || begin + r > last) continue;
      log_softmax(rows.row<float>(r), static_cast<size_t>(rows.cols), &log_probs);
      status = take(begin + r, log_probs);
    }
  }));
  return status;
}

// Every scored position of every chunk.
Status for_positions(LoadedModel& model, const Chunks& chunks, const FidelityProgress& progress,
                     const std::function<Status(int32_t next, const std::vector<float>&)>& take) {
  const auto total = static_cast<int64_t>(chunks.ids.size());
  for (int64_t c = 0; c < total; ++c) {
    NIBBLE_TRY(check_interrupt());
    const auto& ids = chunks.ids[static_cast<size_t>(c)];
    NIBBLE_TRY(for_rows(model, ids, chunks.first_scored(), chunks.context - 2,
                        [&](int64_t row, const std::vector<float>& log_probs) {
                          return take(ids[static_cast<size_t>(row + 1)], log_probs);
                        }));
    progress(c + 1, total);
  }
  return {};
}

size_t argmax(const std::vector<float>& values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) /
         static_cast<double>(std::max<size_t>(1, values.size()));
}

// Of the mean of independent values.
double error_of(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double center = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  const auto n = static_cast<double>(values.size());
  return std::sqrt(squares / (n - 1) / n);
}

// Linear between neighbours, as NumPy's default.
double quantile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

Result<std::string> tokenizer_hash(const LoadedModel& model) {
  return sha256_file(model.directory / "tokenizer.json");
}

// log of the mass of all tokens but `ids`, as the file rounds it. Summed itself: one minus the kept
// mass is nothing but rounding where a model is sure.
float log_mass_besides(const std::vector<uint32_t>& ids, const std::vector<float>& log_probs) {
  std::vector<bool> is_kept(log_probs.size());
  for (const uint32_t id : ids) is_kept[id] = true;
  double mass = 0;
  for (size_t i = 0; i < log_probs.size(); ++i) {
    if (!is_kept[i]) mass += std::exp(double{log_probs[i]});
  }
  return static_cast<float>(remaining_log(mass));
}

// KL over the stored ids and one bucket for the rest.
double divergence(const ReferencePosition& reference, const std::vector<float>& q) {
  double kl = 0;
  for (size_t i = 0; i < reference.log_probs.size(); ++i) {
    const double p = reference.log_probs[i];
    const double other = q[reference.id(i)];
    kl += std::exp(p) * (p - other);
  }
  if (reference.ids.empty()) return kl;
  if (std::isinf(reference.log_rest)) return kl;
  const float log_rest = log_mass_besides(reference.ids, q);
  return kl +
         std::exp(double{reference.log_rest}) * (double{reference.log_rest} - double{log_rest});
}

}  // namespace

Result<Chunks> cut_text(const std::string& text, const Tokenizer& tokenizer, int64_t context,
                        int64_t max_chunks) {
  if (context < kMinContext) {
    return invalid_argument(
        fmt::format("--context is {}, expected at least {}", context, kMinContext));
  }
  auto ids = NIBBLE_TRY(tokenizer.encode(text));
  const auto bos = tokenizer.bos_id();
  // As llama.cpp does it: in front of the text, so that its first token is not lost.
  if (bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
  Chunks chunks;
  chunks.context = context;
  for (size_t at = 0; at + static_cast<size_t>(context) <= ids.size();
       at += static_cast<size_t>(context)) {
    if (max_chunks > 0 && static_cast<int64_t>(chunks.ids.size()) == max_chunks) break;
    const auto begin = ids.begin() + static_cast<int64_t>(at);
    chunks.ids.emplace_back(begin, begin + context);
    if (bos) chunks.ids.back().front() = *bos;
  }
  if (chunks.ids.empty()) {
    return invalid_argument(
        fmt::format("the text has {} tokens, fewer than a context of {}", ids.size(), context));
  }
  return chunks;
}

Perplexity perplexity_of(const std::vector<double>& nll) {
  Perplexity p;
  p.tokens = static_cast<int64_t>(nll.size());
  p.mean_nll = mean_of(nll);
  p.nll_se = error_of(nll);
  p.perplexity = std::exp(p.mean_nll);
  p.se = p.nll_se * p.perplexity;
  return p;
}

Result<Perplexity> measure_perplexity(LoadedModel& model, const Chunks& chunks,
                                      const FidelityProgress& progress) {
  std::vector<double> nll;
  NIBBLE_TRY(for_positions(model, chunks, progress,
                           [&](int32_t next, const std::vector<float>& log_probs) -> Status {
                             nll.push_back(-double{log_probs[static_cast<size_t>(next)]});
                             return {};
                           }));
  return perplexity_of(nll);
}

Status write_reference(LoadedModel& model, const Chunks& chunks, int64_t top_k,
                       const std::filesystem::path& path, const FidelityProgress& progress) {
  const auto vocab = model.config.vocab_size;
  if (top_k < 0 || top_k > vocab) {
    return invalid_argument(fmt::format("--top-k is {}, expected 0 to {}", top_k, vocab));
  }
  ReferenceHeader header;
  header.vocab = vocab;
  header.top_k = top_k;
  header.context = chunks.context;
  header.num_chunks = static_cast<int64_t>(chunks.ids.size());
  header.tokenizer = NIBBLE_TRY(tokenizer_hash(model));
  OutputFile file = NIBBLE_TRY(OutputFile::create(path));
  NIBBLE_TRY(file.write(reference_prefix(header, chunks.ids)));
  std::vector<uint32_t> order(static_cast<size_t>(vocab));
  NIBBLE_TRY(for_positions(
      model, chunks, progress, [&](int32_t next, const std::vector<float>& q) -> Status {
        ReferencePosition position;
        position.log_true = q[static_cast<size_t>(next)];
        if (top_k == 0) {
          position.log_probs = q;
          return file.write(reference_record(position));
        }
        std::iota(order.begin(), order.end(), 0U);
        const auto less = [&](uint32_t a, uint32_t b) {
          return q[a] > q[b] || (q[a] == q[b] && a < b);
        };
        std::partial_sort(order.begin(), order.begin() + top_k, order.end(), less);
        for (int64_t i = 0; i < top_k; ++i) {
          const uint32_t id = order[static_cast<size_t>(i)];
          position.ids.push_back(id);
          position.log_probs.push_back(q[id]);
        }
        position.log_rest = log_mass_besides(position.ids, q);
        return file.write(reference_record(position));
      }));
  return file.commit();
}

Result<Divergence> measure_divergence(LoadedModel& model, const std::filesystem::path& path,
                                      const FidelityProgress& progress) {
  const ReferenceReader reader = NIBBLE_TRY(ReferenceReader::open(path));
  const ReferenceHeader& header = reader.header();
  const std::string hash = NIBBLE_TRY(tokenizer_hash(model));
  if (header.tokenizer != hash || header.vocab != model.config.vocab_size) {
    return corrupt(fmt::format("{}: made with another tokenizer", path.string()));
  }
  Chunks chunks;
  chunks.context = header.context;
  chunks.ids = reader.chunks();
  Divergence d;
  d.context = header.context;
  d.top_k = header.top_k;
  std::vector<double> kl, nll, reference_nll, nll_difference, same, delta;
  double rest = 0, sure_same = 0;
  int64_t at = 0;
  NIBBLE_TRY(for_positions(
      model, chunks, progress, [&](int32_t next, const std::vector<float>& q) -> Status {
        const ReferencePosition p = reader.position(at++);
        const double own = q[static_cast<size_t>(next)];
        kl.push_back(std::max(0.0, divergence(p, q)));
        rest += p.ids.empty() ? 0 : std::exp(double{p.log_rest});
        nll.push_back(-own);
        reference_nll.push_back(-double{p.log_true});
        nll_difference.push_back(double{p.log_true} - own);
        const auto [best, second] = p.best_two();
        same.push_back(argmax(q) == best.first ? 1 : 0);
        if (std::exp(double{best.second}) - std::exp(double{second}) > kSureMargin) {
          ++d.num_sure;
          sure_same += same.back();
        }
        delta.push_back(std::exp(own) - std::exp(double{p.log_true}));
        return {};
      }));
  d.positions = static_cast<int64_t>(kl.size());
  d.mean_rest = rest / static_cast<double>(kl.size());
  d.mean = mean_of(kl);
  d.se = error_of(kl);
  std::sort(kl.begin(), kl.end());
  d.median = quantile(kl, 0.5);
  d.p90 = quantile(kl, 0.9);
  d.p95 = quantile(kl, 0.95);
  d.p99 = quantile(kl, 0.99);
  d.p999 = quantile(kl, 0.999);
  d.max = kl.back();
  d.reference = perplexity_of(reference_nll);
  d.model = perplexity_of(nll);
  d.ln_ratio = mean_of(nll_difference);
  d.ln_ratio_se = error_of(nll_difference);
  d.same_top1 = mean_of(same);
  d.same_top1_se = error_of(same);
  d.same_top1_sure = d.num_sure > 0 ? sure_same / static_cast<double>(d.num_sure) : 1;
  d.delta_p_mean = mean_of(delta);
  double squares = 0;
  for (const double one : delta) squares += one * one;
  d.delta_p_rms = std::sqrt(squares / static_cast<double>(delta.size()));
  std::sort(delta.begin(), delta.end());
  for (const int percent : {1, 5, 25, 50, 75, 95, 99}) {
    d.delta_p.emplace_back(percent, quantile(delta, percent / 100.0));
  }
  return d;
}

Result<std::vector<ForcedScore>> measure_forced(LoadedModel& model,
                                                const std::filesystem::path& file,
                                                const std::string& chat_template,
                                                const FidelityProgress& progress) {
  const ChatTemplate chat = NIBBLE_TRY(ChatTemplate::load(model.directory, chat_template));
  std::vector<std::string> rows;
  NIBBLE_TRY(for_each_row(file, [&](std::string_view row) -> Status {
    rows.emplace_back(row);
    return {};
  }));
  const auto bos = model.tokenizer.bos_id();
  std::vector<ForcedScore> scores;
  for (size_t n = 0; n < rows.size(); ++n) {
    NIBBLE_TRY(check_interrupt());
    const Json row = Json::parse(rows[n], nullptr, false);
    const auto text = [&](const char* name) {
      return row.contains(name) && row[name].is_string() ? row[name].get<std::string>()
                                                         : std::string();
    };
    const std::string prompt = text("prompt"), continuation = text("continuation");
    if (prompt.empty() || continuation.empty()) {
      return corrupt(fmt::format("{} row {}: 'prompt' or 'continuation' is missing or no text",
                                 file.string(), n + 1));
    }
    ForcedScore score;
    score.id = row.contains("id") ? (row["id"].is_string() ? text("id") : row["id"].dump())
                                  : std::to_string(n + 1);
    ChatRequest request;
    ChatMessage message;
    message.role = "user";
    message.content = prompt;
    request.messages.push_back(message);
    const bool is_raw = row.value("raw", false);
    auto ids =
        NIBBLE_TRY(is_raw ? model.tokenizer.encode(prompt) : chat.encode(request, model.tokenizer));
    if (is_raw && bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
    auto next = NIBBLE_TRY(model.tokenizer.encode(continuation));
    if (bos && !next.empty() && next.front() == *bos) next.erase(next.begin());
    if (next.empty()) {
      return corrupt(
          fmt::format("{} row {}: the continuation has no tokens", file.string(), n + 1));
    }
    const auto first = static_cast<int64_t>(ids.size()) - 1;
    ids.insert(ids.end(), next.begin(), next.end());
    bool is_greedy = true;
    NIBBLE_TRY(for_rows(model, ids, first, static_cast<int64_t>(ids.size()) - 2,
                        [&](int64_t place, const std::vector<float>& q) -> Status {
                          const auto token =
                              static_cast<size_t>(ids[static_cast<size_t>(place + 1)]);
                          score.nll -= q[token];
                          is_greedy &= argmax(q) == token;
                          if (is_greedy) ++score.greedy_prefix;
                          if (place == first) score.first_match = is_greedy;
                          return {};
                        }));
    score.tokens = static_cast<int64_t>(next.size());
    score.nll /= static_cast<double>(next.size());
    scores.push_back(std::move(score));
    progress(static_cast<int64_t>(n + 1), static_cast<int64_t>(rows.size()));
  }
  if (scores.empty()) return corrupt(file.string() + ": no rows");
  return scores;
}

}  // namespace nibble
