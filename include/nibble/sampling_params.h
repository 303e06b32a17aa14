// How the next token is chosen and when generation ends.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/export.h"
#include "nibble/result.h"

namespace nibble::api {

// Structure that the output must have.
struct GuidedDecoding {
  std::optional<std::string> json = std::nullopt;     // a JSON schema
  bool json_object = false;                           // any JSON object
  std::optional<std::string> regex = std::nullopt;    // for the whole output
  std::vector<std::string> choice = {};               // one of these
  std::optional<std::string> grammar = std::nullopt;  // GBNF, llama.cpp's form of BNF
};

// Judges drafts of this request between <think> and </think>.
struct RelaxedAcceptance {
  bool enabled = true;
  int64_t topk = 1;  // >= 1
  double delta = 0;  // 0..1
};

// A field that is none takes the model's own default (generation_config.json), or that of
// LLMOptions. Out of range: kInvalidArgument naming field, value and range.
struct SamplingParams {
  // >= 1, or 0 with prompt_logprobs; none: the rest of the context. Clipped to the context.
  std::optional<int64_t> max_tokens = std::nullopt;
  int64_t min_tokens = 0;                            // 0..max_tokens
  std::optional<double> temperature = std::nullopt;  // 0..2; below 1e-5: greedy
  std::optional<double> top_p = std::nullopt;        // above 0, at most 1
  std::optional<int64_t> top_k = std::nullopt;       // 0 and -1: off
  double min_p = 0;                                  // 0..1: drop tokens with p < min_p * max p
  double repetition_penalty = 1;                     // above 0, at most 10
  double presence_penalty = 0;                       // -2..2
  double frequency_penalty = 0;                      // -2..2
  std::map<int64_t, double> logit_bias = {};         // id -> -100..100; at most 1024; -100 bans
  std::optional<int64_t> seed = std::nullopt;        // none: from LLMOptions::seed and a counter
  int64_t n = 1;                                     // 1..128 answers; the prompt is computed once
  std::optional<int64_t> best_of = std::nullopt;     // n..128: made, of which the n best are kept
  std::vector<std::string> stop = {};                // at most 16 of 1..256 bytes
  std::vector<int64_t> stop_token_ids = {};          // at most 64
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;                                // EOS neither ends nor is masked
  std::vector<std::string> bad = {};                      // texts that must not appear
  std::optional<int64_t> logprobs = std::nullopt;         // 0..20 top entries for each token
  std::optional<int64_t> prompt_logprobs = std::nullopt;  // 0..20; the prompt is not reused then
  bool skip_special_tokens = true;                        // in the text; ids keep them
  std::optional<int64_t> truncate_prompt_tokens = std::nullopt;  // >= 1: keep the last of them
  std::optional<GuidedDecoding> guided = std::nullopt;
  std::string thinking = "auto";                          // of chats: auto, on, off
  std::optional<int64_t> thinking_budget = std::nullopt;  // >= 0 tokens, then </think> is forced
  std::optional<RelaxedAcceptance> relaxed_acceptance = std::nullopt;  // none: as configured
  std::string cache_salt = {};  // separates the prefix cache of tenants
  int64_t priority = 0;         // -100..100, higher first
  std::optional<double> timeout_seconds =
      std::nullopt;  // above 0; what is there then ends with "abort"
};

// From a JSON object with these names and their aliases (max_new_tokens, max_completion_tokens).
// Errors: kInvalidArgument for wrong types, unknown names (with the nearest known ones) and values
// out of range.
NIBBLE_EXPORT Result<SamplingParams> parse_sampling_params(std::string_view json);

}  // namespace nibble::api

#ifndef NIBBLE_IMPLEMENTATION
namespace nibble {
using api::GuidedDecoding;
using api::parse_sampling_params;
using api::RelaxedAcceptance;
using api::SamplingParams;
}  // namespace nibble
#endif
