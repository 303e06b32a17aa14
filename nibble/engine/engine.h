// Many requests at once on one model: continuous batching over a paged cache, with MTP drafts.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/device/memory_report.h"
#include "nibble/engine/block_pool.h"
#include "nibble/engine/draft_model.h"
#include "nibble/engine/draft_policy.h"
#include "nibble/engine/lane_choice.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/model_passes.h"
#include "nibble/engine/scheduler.h"
#include "nibble/engine/step_batch.h"
#include "nibble/engine/step_count.h"
#include "nibble/engine/step_sampler.h"

namespace nibble {

struct EngineOptions {
  int64_t max_batch_size = 32;   // sequences of a step
  int64_t max_num_tokens = 512;  // tokens of a step
  int64_t block_size = 32;       // tokens of a cache block
  int64_t num_blocks = 0;        // 0: from the fraction below
  // Of the memory that is free when everything else has its room; none: 0.9 of a GPU's, 0.3 of the
  // host's.
  std::optional<double> kv_cache_free_gpu_memory_fraction;
  std::optional<DType> kv_cache_dtype;  // none: what the checkpoint asks for
  bool enable_block_reuse = true;
  bool enable_chunked_prefill = true;
  int64_t num_drafts = 0;            // of the MTP layer, for each sequence and step: 0..8
  DraftOptions draft;                // how they are made, and when fewer
  RelaxedThinking relaxed_thinking;  // how drafts are judged while the model thinks
  // For benchmarks of weights that mean nothing: so many tokens of a window stand, 1 .. num_drafts
  // + 1 on average, whatever the model says of the drafts.
  std::optional<double> forced_acceptance_length;
  bool processed_logprobs = false;  // logprobs_mode: raw, or after everything but the draw
  bool cuda_graphs = true;          // steps of decoding are recorded and replayed, on a GPU
  std::vector<int64_t> cuda_graph_batch_sizes;  // recorded at once; empty: sizes as they come
};

// The fraction that was asked for, or the device's default.
double kv_cache_fraction(const EngineOptions& options, const Device& device);

struct Request {
  std::vector<int32_t> prompt_token_ids;
  SamplingParams params;
  int choice = 0;  // index among the answers to one prompt: other random numbers
  std::optional<double> timeout_seconds;
};

// What a step brought for one request. After `finished` nothing follows.
struct RequestUpdate {
  uint64_t id = 0;
  std::vector<int32_t> token_ids;                 // new ones; the stop token is among them
  std::string text;                               // new; ends before a stop string or token
  std::vector<PositionLogprobs> logprobs;         // of token_ids, with params.logprobs
  std::vector<PositionLogprobs> prompt_logprobs;  // of the next prompt tokens, from the second on
  std::string stop_text;                          // the stop string that ended it
  bool finished = false;
  FinishReason finish_reason = FinishReason::kStop;
  std::optional<Error> error;  // with kError
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;  // of the prompt, not computed
  int64_t num_draft_tokens = 0;   // that this step judged, windows cut by the end left out
  int64_t num_accepted_tokens = 0;
  double queue_seconds = 0;                        // from add() until a step took it
  std::chrono::steady_clock::time_point step_end;  // of the step that brought it
};

// Windows of drafts judged under one rule.
struct DraftCount {
  int64_t windows = 0;
  int64_t draft_tokens = 0;
  int64_t accepted_tokens = 0;
};

// Counted since the engine was made.
struct EngineStats {
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // computed
  int64_t num_generated_tokens = 0;
  int64_t num_cached_tokens = 0;  // found instead of computed
  int64_t num_preemptions = 0;
  int64_t num_windows = 0;  // verified windows of drafts, but for those cut by the end
  int64_t num_draft_tokens = 0;
  std::vector<int64_t> accepted_at;  // windows in which the draft at this place was accepted
  int64_t num_running = 0;           // now
  int64_t num_waiting = 0;
  int64_t num_blocks = 0;
  int64_t num_used_blocks = 0;
  int64_t num_cached_blocks = 0;
  std::optional<ExpertStoreStats> experts;  // where they come from a store
  StepCount prefill_steps;                  // prompts alone
  StepCount decode_steps;                   // one window of each sequence
  StepCount mixed_steps;
  DraftCount drafts[2][2];         // [DraftRule::thinking][DraftRule::relaxed]
  int64_t num_guided = 0;          // requests with guided output
  double guided_seconds = 0;       // that their grammars took before the first step
  double last_step_timestamp = 0;  // seconds since 1970; 0 before the first
  // Of a GPU: what was recorded and replayed, and the windows that it sampled and that it left to
  // the host.
  StepGraphStats graphs;
  double replayed_step_seconds = 0;  // from begin to end of the steps with such passes
  int64_t num_device_windows = 0;
  int64_t num_host_windows = 0;
  int64_t num_device_drafts = 0;  // that it was to draw
  int64_t num_host_drafts = 0;    // that the host drew: those that it left undecided among them

  // 1 + accepted drafts per window; 1 without windows.
  double acceptance_length() const;
};

// A request's result is a function of its prompt, parameters and seed: bit for bit the same
// whatever else runs, however its prompt is cut, whether blocks were found, and with or without
// drafts (but for relaxed acceptance and draft_sampling).
//
// Not thread-safe: one thread calls everything.
class Engine {
 public:
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  // The model must outlive the engine. Of a model on several ranks this is rank 0's, and the other
  // ranks are in serve_rank(). Errors: kInvalidArgument naming an option and its range
  // (drafts without an MTP layer among them), kOutOfMemory.
  static Result<std::unique_ptr<Engine>> create(LoadedModel& model, const EngineOptions& options);

  // Queues a request; its id. Errors, for this request alone: kInvalidArgument (no tokens, an id
  // outside the vocabulary, a prompt that fills the context, parameters out of range).
  virtual Result<uint64_t> add(Request request);

  // The request ends with kAbort in the next step. Unknown or finished ids are ignored.
  virtual void cancel(uint64_t id);

  virtual bool has_work() const;

  // Schedules, runs the model once, samples, drafts, commits. Returns what changed. When the device
  // fails, every request ends with kError and the device's words.
  virtual std::vector<RequestUpdate> step();

  // Why no further request can be computed: a device that failed for good.
  const std::optional<Error>& failure() const { return failure_; }

  // Where the device's memory went. Errors: those of Device::memory().
  Result<MemoryReport> memory() const;
  Device& device() const { return model_.kernels->device(); }

  virtual EngineStats stats() const;

  // Prompt and output together, of one request: the model's context or what the cache holds.
  int64_t max_seq_len() const { return max_seq_len_; }

  // Forgets all cached prefixes.
  virtual void reset_prefix_cache() { pool_.forget(); }

 private:
  friend class DataParallelEngine;  // an engine made of several

  Engine(LoadedModel& model, const EngineOptions& options, std::unique_ptr<ModelPasses> passes,
         int64_t num_blocks);

  // What the cache holds, and what the model: the second half of making one.
  Status settle_max_seq_len();

  // Where a new request is best added, when there are several schedulers.
  LaneLoad lane_load(const Request& request);

  // Made when the first request asks for guided output: it reads the whole vocabulary.
  GuidedCache& grammars();

  StepCount& count_of(const std::vector<ScheduledRun>& runs);
  void drop_ended(std::vector<RequestUpdate>& updates);
  void compute(const std::vector<ScheduledRun>& runs, std::vector<RequestUpdate>& updates);
  void run_apart(const std::vector<ScheduledRun>& runs, const Error& error,
                 std::vector<RequestUpdate>& updates);
  void fail_all(const Error& error, std::vector<RequestUpdate>& updates);
  void sample(const StepBatch& batch, std::vector<RequestUpdate>& updates);
  void finish(Sequence& sequence, RequestUpdate update, std::vector<RequestUpdate>& updates);
  void fail(Sequence& sequence, Error error, std::vector<RequestUpdate>& updates);
  void accept(Sequence& sequence, const ScheduledRun& run, SequenceSampler::Window window,
              std::vector<RequestUpdate>& updates);
  using Failures = std::vector<std::pair<Sequence*, Error>>;
  void score_prompt(const StepBatch& batch, std::vector<RequestUpdate>& updates, Failures& failed);

  LoadedModel& model_;
  EngineOptions options_;
  std::unique_ptr<ModelPasses> passes_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::optional<DraftModel> drafter_;
  DraftPolicy draft_policy_;
  std::unique_ptr<GuidedCache> grammars_;
  StepSampler sampler_;
  std::optional<Error> failure_;
  std::unordered_map<uint64_t, Sequence*> sequences_;
  int64_t max_seq_len_ = 0;
  uint64_t next_id_ = 1;
  EngineStats stats_;
};

}  // namespace nibble
