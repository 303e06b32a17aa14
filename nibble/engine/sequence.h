// One request's tokens while it waits, runs and ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nibble/engine/draft_policy.h"
#include "nibble/engine/finish_reason.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/engine/sequence_sampler.h"

namespace nibble {

struct Sequence {
  explicit Sequence(SequenceSampler s) : sampler(std::move(s)) {}

  using Clock = std::chrono::steady_clock;

  uint64_t id = 0;   // in order of arrival
  int priority = 0;  // higher first; ties by arrival
  int choice = 0;    // index among the n of one request: part of the random counter
  SequenceSampler sampler;
  bool use_prefix_cache = true;
  std::string cache_salt;
  int64_t num_prompt_logprobs = -1;  // entries for each prompt token; -1: none are wanted
  int64_t num_scored = 0;  // prompt tokens whose log-probabilities were told, but the first
  std::optional<Clock::time_point> deadline;
  Clock::time_point arrival = Clock::now();
  std::optional<Clock::time_point> first_run;  // when a step took it for the first time

  std::vector<int32_t> token_ids;  // prompt, then output
  int64_t prompt_size = 0;
  int64_t max_output = 0;  // > 0

  // Cache state. Entries of the positions below num_computed are valid; with the MTP layer so are
  // the pairs (hidden of t, token t + 1) for t below num_mtp.
  int64_t num_computed = 0;
  int64_t num_mtp = 0;
  std::vector<int32_t> block_table;
  int64_t num_published = 0;  // leading blocks that were found or published
  int64_t parent = -1;        // identity of the last of those, or the root

  // Tokens proposed by the MTP layer to stand behind token_ids; verified in the next step.
  Drafts drafts;
  int64_t num_draft_steps = 0;  // drafts to make in this step
  AcceptanceHistory acceptance;

  bool cancelled = false;
  int num_preemptions = 0;
  int64_t num_cached_tokens = 0;  // of the prompt, not computed because they were found

  int64_t size() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t output_size() const { return size() - prompt_size; }
  // Tokens whose entries are still to be computed; 1 for a sequence that decodes.
  int64_t num_pending() const { return size() - num_computed; }
};

}  // namespace nibble
