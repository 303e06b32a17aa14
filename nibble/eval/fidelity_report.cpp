// What the fidelity measures say, for people and for programs.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/eval/fidelity.h"
#include "nibble/eval/stats.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNormal95 = 1.959963984540054;
constexpr double kTie = 1e-6;  // of NLL a token

Json perplexity_object(const Perplexity& p) {
  return {{"tokens", p.tokens},
          {"mean_nll", p.mean_nll},
          {"nll_se", p.nll_se},
          {"perplexity", p.perplexity},
          {"se", p.se}};
}

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

// id -> NLL a token, of a file that forced_json() wrote.
Result<std::map<std::string, double>> read_forced(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  std::map<std::string, double> scores;
  try {
    if (json.at("schema") != "nibble.eval.nll/1") throw std::out_of_range("schema");
    for (const Json& one : json.at("continuations")) {
      scores[one.at("id").get<std::string>()] = one.at("nll").get<double>();
    }
  } catch (const std::exception&) {
    return corrupt("not a file that nibble eval fidelity nll --json wrote");
  }
  return scores;
}

}  // namespace

std::string perplexity_text(const Perplexity& p) {
  return fmt::format("perplexity {:.5f} +- {:.5f}  ({} tokens, mean NLL {:.5f} +- {:.5f})\n",
                     p.perplexity, p.se, p.tokens, p.mean_nll, p.nll_se);
}

std::string perplexity_json(const Perplexity& p) {
  Json json = {{"schema", "nibble.eval.ppl/1"}};
  json.update(perplexity_object(p));
  return json.dump(2) + "\n";
}

std::string divergence_text(const Divergence& d) {
  std::string text =
      fmt::format("positions         {} (context {}, {})\n", d.positions, d.context,
                  d.top_k == 0 ? "all tokens" : fmt::format("top {} and the rest as one", d.top_k));
  text += fmt::format("KL divergence     {:.6f} +- {:.6f}\n", d.mean, d.se);
  text +=
      fmt::format("  median, 90, 95, 99, 99.9 %, max: {:.6f} {:.6f} {:.6f} {:.6f} {:.6f} {:.6f}\n",
                  d.median, d.p90, d.p95, d.p99, d.p999, d.max);
  if (d.top_k > 0)
    text += fmt::format("  mass outside of the top {}: {:.2e}\n", d.top_k, d.mean_rest);
  text += fmt::format("perplexity        {:.5f} +- {:.5f} (reference {:.5f} +- {:.5f})\n",
                      d.model.perplexity, d.model.se, d.reference.perplexity, d.reference.se);
  text += fmt::format("ln of their ratio {:.6f} +- {:.6f}\n", d.ln_ratio, d.ln_ratio_se);
  text += fmt::format(
      "same top-1        {:.3f} +- {:.3f} %; where the margin is above 0.1: {:.3f} % of {}\n",
      100 * d.same_top1, 100 * d.same_top1_se, 100 * d.same_top1_sure, d.num_sure);
  text += fmt::format("delta p           mean {:.4f} %, RMS {:.4f} %;", 100 * d.delta_p_mean,
                      100 * d.delta_p_rms);
  for (const auto& [percent, value] : d.delta_p)
    text += fmt::format(" {}%: {:.3f}", percent, 100 * value);
  return text + "\n";
}

std::string divergence_json(const Divergence& d) {
  Json delta = Json::object();
  for (const auto& [percent, value] : d.delta_p) delta[std::to_string(percent)] = value;
  Json json = {
      {"schema", "nibble.eval.kld/1"},
      {"positions", d.positions},
      {"context", d.context},
      {"top_k", d.top_k},
      {"mean_rest", d.mean_rest},
      {"kl",
       {{"mean", number(d.mean)},
        {"se", number(d.se)},
        {"median", d.median},
        {"90", d.p90},
        {"95", d.p95},
        {"99", d.p99},
        {"99.9", d.p999},
        {"max", number(d.max)}}},
      {"reference", perplexity_object(d.reference)},
      {"model", perplexity_object(d.model)},
      {"ln_ratio", d.ln_ratio},
      {"ln_ratio_se", d.ln_ratio_se},
      {"same_top1", d.same_top1},
      {"same_top1_se", d.same_top1_se},
      {"same_top1_sure", d.same_top1_sure},
      {"num_sure", d.num_sure},
      {"delta_p", {{"mean", d.delta_p_mean}, {"rms", d.delta_p_rms}, {"percentiles", delta}}}};
  return json.dump(2) + "\n";
}

std::string forced_json(const std::vector<ForcedScore>& scores) {
  Json all = Json::array();
  for (const ForcedScore& one : scores) {
    all.push_back({{"id", one.id},
                   {"tokens", one.tokens},
                   {"nll", one.nll},
                   {"first_match", one.first_match},
                   {"greedy_prefix", one.greedy_prefix}});
  }
  return Json{{"schema", "nibble.eval.nll/1"}, {"continuations", all}}.dump(2) + "\n";
}

std::string forced_text(const std::vector<ForcedScore>& scores) {
  double nll = 0, first = 0, prefix = 0, whole = 0;
  int64_t tokens = 0;
  for (const ForcedScore& one : scores) {
    nll += one.nll * static_cast<double>(one.tokens);
    tokens += one.tokens;
    first += one.first_match ? 1 : 0;
    prefix += static_cast<double>(one.greedy_prefix);
    whole += one.greedy_prefix == one.tokens ? 1 : 0;
  }
  const auto n = static_cast<double>(scores.size());
  return fmt::format(
      "{} continuations, {} tokens: NLL a token {:.5f}, first token {:.1f} %, greedy prefix {:.1f} "
      "tokens, whole {:.1f} %\n",
      scores.size(), tokens, nll / static_cast<double>(tokens), 100 * first / n, prefix / n,
      100 * whole / n);
}

Result<std::string> compare_forced(const std::string& baseline, const std::string& candidate) {
  const auto a = NIBBLE_TRY(read_forced(baseline));
  const auto b = NIBBLE_TRY(read_forced(candidate));
  std::vector<double> differences;
  std::vector<std::string> ids;
  int wins = 0, losses = 0, ties = 0;
  for (const auto& [id, nll] : a) {
    const auto other = b.find(id);
    if (other == b.end())
      return invalid_argument(fmt::format("'{}' is in the first file alone", id));
    const double difference = other->second - nll;
    differences.push_back(difference);
    ids.push_back(id);
    (std::abs(difference) <= kTie ? ties : difference < 0 ? wins : losses) += 1;
  }
  if (a.size() != b.size()) return invalid_argument("the second file has further continuations");
  const double center = mean(differences), se = clustered_se(differences, ids);
  return fmt::format(
      "NLL a token, second - first: {:+.6f}, 95 % {:+.6f}..{:+.6f}; lower in {}, higher in {}, "
      "equal "
      "in {} of {}\n",
      center, center - kNormal95 * se, center + kNormal95 * se, wins, losses, ties,
      differences.size());
}

}  // namespace nibble
