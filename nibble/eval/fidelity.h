// Cheap measures of a model's fidelity that need no benchmark: perplexity, KL divergence from a
// reference, and the likelihood of given continuations.
// Source of every convention: the evaluation specification, section 10 (llama.cpp's perplexity).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/loaded_model.h"

namespace nibble {

using FidelityProgress = std::function<void(int64_t done, int64_t total)>;

// BOS and a text's token ids cut into chunks of `context` tokens without overlap (a shorter rest is
// dropped), the first token of each replaced by BOS. Errors: kInvalidArgument when there is no
// whole chunk, or the context is below 8.
struct Chunks {
  int64_t context = 0;
  std::vector<std::vector<int32_t>> ids;

  // Rows of logits that are scored: n/2 .. n-2, each predicts the token behind it.
  int64_t first_scored() const { return context / 2; }
  int64_t scored_per_chunk() const { return context - 1 - first_scored(); }
};
Result<Chunks> cut_text(const std::string& text, const Tokenizer& tokenizer, int64_t context,
                        int64_t max_chunks);

struct Perplexity {
  int64_t tokens = 0;
  double mean_nll = 0;
  double nll_se = 0;  // from the variance of the tokens' NLL
  double perplexity = 0;
  double se = 0;  // nll_se * perplexity
};
Perplexity perplexity_of(const std::vector<double>& nll);

Result<Perplexity> measure_perplexity(LoadedModel& model, const Chunks& chunks,
                                      const FidelityProgress& progress);

// Writes the reference distributions: for each scored position the K likeliest ids with their
// log-probabilities, the log of the remaining mass and the log-probability of the true token.
// K = 0 keeps all. Errors: those of the model and the file.
Status write_reference(LoadedModel& model, const Chunks& chunks, int64_t top_k,
                       const std::filesystem::path& path, const FidelityProgress& progress);

struct Divergence {
  int64_t positions = 0;
  int64_t context = 0;
  int64_t top_k = 0;
  double mean_rest = 0;  // mass outside the top K in the reference
  double mean = 0, se = 0, median = 0, p90 = 0, p95 = 0, p99 = 0, p999 = 0, max = 0;
  Perplexity reference, model;
  double ln_ratio = 0;     // ln PPL(model) - ln PPL(reference)
  double ln_ratio_se = 0;  // paired: of the differences of NLL
  double same_top1 = 0, same_top1_se = 0;
  double same_top1_sure = 0;  // where the reference's margin is above 0.1
  int64_t num_sure = 0;
  double delta_p_mean = 0, delta_p_rms = 0;
  std::vector<std::pair<int, double>> delta_p;  // percentile -> value
};

// The model against a reference file: KL over the top K and one bucket for the rest, a lower bound
// of the exact value (exact with K = 0). Errors: kCorrupt for a damaged file or another tokenizer.
Result<Divergence> measure_divergence(LoadedModel& model, const std::filesystem::path& reference,
                                      const FidelityProgress& progress);

// One continuation, forced.
struct ForcedScore {
  std::string id;
  int64_t tokens = 0;
  double nll = 0;  // a token
  bool first_match = false;
  int64_t greedy_prefix = 0;  // tokens from the start that are the likeliest each
};
// Rows of JSON lines: {"id", "prompt" or "messages", "continuation"}; a prompt is rendered by the
// chat template unless "raw" is true. Errors: kCorrupt naming row and field.
Result<std::vector<ForcedScore>> measure_forced(LoadedModel& model,
                                                const std::filesystem::path& file,
                                                const std::string& chat_template,
                                                const FidelityProgress& progress);

// For people and, as JSON, for programs.
std::string perplexity_text(const Perplexity& p);
std::string perplexity_json(const Perplexity& p);
std::string divergence_text(const Divergence& d);
std::string divergence_json(const Divergence& d);
std::string forced_json(const std::vector<ForcedScore>& scores);
std::string forced_text(const std::vector<ForcedScore>& scores);
// Two files that forced_json() wrote: the second against the first. Errors: kCorrupt;
// kInvalidArgument when their ids differ.
Result<std::string> compare_forced(const std::string& baseline, const std::string& candidate);

}  // namespace nibble
