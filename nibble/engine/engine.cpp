#include "nibble/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/engine/data_parallel_engine.h"
#include "nibble/engine/pass_plan.h"
#include "nibble/engine/rank_passes.h"
#include "nibble/engine/sampler.h"

namespace nibble {
namespace {

Status check_range(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return invalid_argument(fmt::format("{} is {}, expected {}..{}", name, value, low, high));
}

Status validate(const EngineOptions& options, const LoadedModel& model) {
  constexpr int64_t kMax = int64_t{1} << 24;
  NIBBLE_TRY(check_range("max_batch_size", options.max_batch_size, 1, 65536));
  NIBBLE_TRY(check_range("block_size", options.block_size, 1, 4096));
  NIBBLE_TRY(check_range("num_drafts", options.num_drafts, 0, kMaxDrafts));
  NIBBLE_TRY(nibble::validate(options.draft, options.num_drafts));
  NIBBLE_TRY(check_range("max_num_tokens", options.max_num_tokens, 1, kMax));
  NIBBLE_TRY(check_range("num_blocks", options.num_blocks, 0, std::numeric_limits<int32_t>::max()));
  const RelaxedThinking& relaxed = options.relaxed_thinking;
  NIBBLE_TRY(check_range("relaxed_topk", relaxed.topk, 1, kMax));
  if (!(relaxed.delta >= 0 && relaxed.delta <= 1)) {
    return invalid_argument(fmt::format("relaxed_delta is {}, expected 0..1", relaxed.delta));
  }
  const double forced = options.forced_acceptance_length.value_or(1);
  if (!(forced >= 1 && forced <= static_cast<double>(options.num_drafts + 1))) {
    return invalid_argument(
        fmt::format("forced_acceptance_length is {}, expected 1..{} with {} drafts", forced,
                    options.num_drafts + 1, options.num_drafts));
  }
  const double fraction = options.kv_cache_free_gpu_memory_fraction.value_or(1);
  if (!(fraction > 0 && fraction <= 1)) {
    return invalid_argument(fmt::format(
        "kv_cache_free_gpu_memory_fraction is {}, expected above 0, at most 1", fraction));
  }
  if (options.max_num_tokens < options.max_batch_size * (1 + options.num_drafts)) {
    return invalid_argument(
        fmt::format("max_num_tokens is {}, expected at least max_batch_size * (1 + drafts) = {}",
                    options.max_num_tokens, options.max_batch_size * (1 + options.num_drafts)));
  }
  if (options.num_drafts > 0 && !model.weights.mtp) {
    return invalid_argument(
        "drafts need the MTP layer, which the checkpoint lacks or which was not loaded");
  }
  return {};
}

PassPlan pass_plan(const LoadedModel& model, const EngineOptions& options) {
  PassPlan plan;
  plan.cache.dtype = options.kv_cache_dtype.value_or(model.default_kv_cache_dtype());
  plan.cache.block_size = options.block_size;
  plan.cache.num_blocks = options.num_blocks;
  plan.cache.with_mtp = options.num_drafts > 0;
  plan.cache_fraction = kv_cache_fraction(options, model.kernels->device());
  // A step's pairs for the MTP layer: its tokens, and one more for each sequence behind a found
  // prefix.
  plan.max_rows = options.max_num_tokens + options.max_batch_size;
  plan.max_generated = options.max_batch_size * (1 + options.num_drafts);
  plan.max_batch_size = options.max_batch_size;
  if (options.cuda_graphs) {
    plan.options.graph_sizes = step_graph_sizes(options.cuda_graph_batch_sizes,
                                                options.max_batch_size, options.num_drafts);
  }
  if (options.draft.draft_sampling) {
    plan.options.num_weight_rows = options.max_batch_size * options.num_drafts;
  }
  plan.record_all = !options.cuda_graph_batch_sizes.empty();
  return plan;
}

SchedulerOptions scheduler_options(const EngineOptions& options) {
  SchedulerOptions scheduler;
  scheduler.max_batch_size = options.max_batch_size;
  scheduler.max_num_tokens = options.max_num_tokens;
  scheduler.num_drafts = options.num_drafts;
  scheduler.enable_block_reuse = options.enable_block_reuse;
  scheduler.enable_chunked_prefill = options.enable_chunked_prefill;
  return scheduler;
}

template <typename Duration>
double seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

double kv_cache_fraction(const EngineOptions& options, const Device& device) {
  return options.kv_cache_free_gpu_memory_fraction.value_or(device.is_host() ? 0.3 : 0.9);
}

double EngineStats::acceptance_length() const {
  if (num_windows == 0) return 1;
  int64_t accepted = 0;
  for (const int64_t count : accepted_at) accepted += count;
  return 1 + static_cast<double>(accepted) / static_cast<double>(num_windows);
}

Engine::Engine(LoadedModel& model, const EngineOptions& options,
               std::unique_ptr<ModelPasses> passes, int64_t num_blocks)
    : model_(model),
      options_(options),
      passes_(std::move(passes)),
      pool_(static_cast<int32_t>(num_blocks), static_cast<int32_t>(options.block_size)),
      scheduler_(scheduler_options(options), pool_),
      draft_policy_(options.draft, options.num_drafts),
      sampler_(*passes_) {
  stats_.accepted_at.resize(static_cast<size_t>(options.num_drafts));
  if (options.num_drafts > 0) drafter_.emplace(*passes_, options.block_size);
}

Result<std::unique_ptr<Engine>> Engine::create(LoadedModel& model, const EngineOptions& options) {
  NIBBLE_TRY(validate(options, model));
  const PassPlan plan = pass_plan(model, options);
  if (model.weights.shard.enable_attention_dp) {
    return DataParallelEngine::create(model, options, plan);
  }
  int64_t num_blocks = 0;
  std::unique_ptr<ModelPasses> passes;
  if (model.comm != nullptr) {
    auto of_ranks = NIBBLE_TRY(RankPasses::create(model, plan));
    num_blocks = of_ranks->num_blocks();
    passes = std::move(of_ranks);
  } else {
    SetUpPasses local = NIBBLE_TRY(set_up_passes(model, plan));
    num_blocks = local.num_blocks;
    passes = std::move(local.passes);
  }

  std::unique_ptr<Engine> engine(new Engine(model, options, std::move(passes), num_blocks));
  NIBBLE_TRY(engine->settle_max_seq_len());
  return engine;
}

Status Engine::settle_max_seq_len() {
  const int64_t num_blocks = pool_.num_blocks();
  const int64_t pool_tokens =
      num_blocks * options_.block_size - (options_.num_drafts > 0 ? options_.num_drafts + 1 : 0);
  max_seq_len_ = std::min(model_.max_seq_len, pool_tokens);
  if (pool_tokens < model_.max_seq_len) {
    if (model_.max_seq_len_was_asked) {
      return invalid_argument(fmt::format(
          "max_seq_len is {} tokens, and the KV cache of {} blocks of {} tokens holds {}; "
          "ask for less, or give the cache more memory",
          model_.max_seq_len, num_blocks, options_.block_size, pool_tokens));
    }
    log_warning(fmt::format("the KV cache holds {} tokens: the context is lowered from {} to that",
                            pool_tokens, model_.max_seq_len));
  }
  if (max_seq_len_ < 2) {
    return invalid_argument(fmt::format("a KV cache of {} blocks of {} tokens holds no request",
                                        num_blocks, options_.block_size));
  }
  return {};
}

LaneLoad Engine::lane_load(const Request& request) {
  LaneLoad load;
  load.cached_tokens = scheduler_.count_cached(request.prompt_token_ids, request.params.cache_salt);
  for (const auto& [id, sequence] : sequences_) {
    load.pending_tokens += sequence->num_pending();
    load.num_tokens += sequence->size();
  }
  load.num_sequences = static_cast<int64_t>(sequences_.size());
  return load;
}

Result<uint64_t> Engine::add(Request request) {
  if (failure_) return unavailable("the engine failed: " + failure_->message);
  NIBBLE_TRY(nibble::validate(request.params));
  NIBBLE_TRY(validate_token_ids(request.params, model_.config.vocab_size));
  const auto prompt_size = static_cast<int64_t>(request.prompt_token_ids.size());
  if (prompt_size == 0) return invalid_argument("the prompt has no tokens");
  for (size_t i = 0; i < request.prompt_token_ids.size(); ++i) {
    const int32_t id = request.prompt_token_ids[i];
    if (id < 0 || id >= model_.config.vocab_size) {
      return invalid_argument(
          fmt::format("token {} of the prompt is {}, outside the vocabulary of {}", i, id,
                      model_.config.vocab_size));
    }
  }
  if (prompt_size >= max_seq_len_) {
    return invalid_argument(fmt::format(
        "the prompt has {} tokens, and the context is {} tokens, of which one must stay free",
        prompt_size, max_seq_len_));
  }
  if (!scheduler_.fits(prompt_size)) {
    return invalid_argument(
        fmt::format("the prompt has {} tokens, more than max_num_tokens {} without chunked prefill",
                    prompt_size, options_.max_num_tokens));
  }
  const int64_t room = max_seq_len_ - prompt_size;
  const int64_t max_output = std::min(request.params.max_tokens.value_or(room), room);
  SamplingContext context;
  context.tokenizer = &model_.tokenizer;
  context.vocab_size = model_.config.vocab_size;
  context.eos_token_ids = model_.config.eos_token_ids;
  context.relaxed = options_.relaxed_thinking;
  context.processed_logprobs = options_.processed_logprobs;
  context.forced_acceptance_length = options_.forced_acceptance_length;
  const auto start = Sequence::Clock::now();
  if (request.params.guided) context.grammars = &grammars();
  auto sequence = std::make_unique<Sequence>(NIBBLE_TRY(SequenceSampler::create(
      context, request.params, request.choice, request.prompt_token_ids, max_output)));
  if (request.params.guided) {
    ++stats_.num_guided;
    stats_.guided_seconds += seconds(Sequence::Clock::now() - start);
  }
  sequence->id = next_id_++;
  sequence->priority = static_cast<int>(request.params.priority);
  sequence->cache_salt = request.params.cache_salt;
  sequence->use_prefix_cache = !request.params.prompt_logprobs;
  sequence->num_prompt_logprobs = request.params.prompt_logprobs.value_or(-1);
  sequence->token_ids = std::move(request.prompt_token_ids);
  sequence->prompt_size = prompt_size;
  sequence->max_output = max_output;
  if (request.timeout_seconds) {
    sequence->deadline =
        Sequence::Clock::now() + std::chrono::duration_cast<Sequence::Clock::duration>(
                                     std::chrono::duration<double>(*request.timeout_seconds));
  }
  const uint64_t id = sequence->id;
  sequences_.emplace(id, sequence.get());
  scheduler_.add(std::move(sequence));
  return id;
}

GuidedCache& Engine::grammars() {
  if (!grammars_) {
    const auto& eos = model_.config.eos_token_ids;
    grammars_ = std::make_unique<GuidedCache>(std::make_shared<const TokenTrie>(
        model_.tokenizer, model_.config.vocab_size, std::vector<int32_t>(eos.begin(), eos.end())));
  }
  return *grammars_;
}

void Engine::cancel(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found != sequences_.end()) found->second->cancelled = true;
}

bool Engine::has_work() const { return !sequences_.empty(); }

std::vector<RequestUpdate> Engine::step() {
  std::vector<RequestUpdate> updates;
  drop_ended(updates);
  const auto start = Sequence::Clock::now();
  const std::vector<ScheduledRun> runs = scheduler_.schedule();
  if (runs.empty()) {
    for (RequestUpdate& update : updates) update.step_end = start;
    return updates;
  }
  StepCount& count = count_of(runs);
  int64_t num_tokens = 0;
  for (const ScheduledRun& run : runs) {
    if (!run.sequence->first_run) run.sequence->first_run = start;
    num_tokens += run.num_tokens;
  }
  const size_t before = updates.size();
  try {
    compute(runs, updates);
  } catch (const PassFailure& failure) {
    updates.resize(before);  // what a failed step told is void
    fail_all(failure.error(), updates);
  } catch (const std::runtime_error& failure) {  // a rank's
    updates.resize(before);
    fail_all({ErrorCode::kUnavailable, failure.what()}, updates);
  }
  ++stats_.num_steps;
  const auto end = Sequence::Clock::now();
  count.add(seconds(end - start), num_tokens, static_cast<int64_t>(runs.size()));
  for (RequestUpdate& update : updates) update.step_end = end;
  stats_.last_step_timestamp = seconds(std::chrono::system_clock::now().time_since_epoch());
  return updates;
}

void Engine::compute(const std::vector<ScheduledRun>& runs, std::vector<RequestUpdate>& updates) {
  const auto start = Sequence::Clock::now();
  const int64_t replayed = passes_->num_replayed();
  const auto batch = run_step(runs, *passes_);
  if (!batch) return run_apart(runs, batch.error(), updates);
  sample(*batch, updates);
  if (passes_->num_replayed() > replayed) {
    stats_.replayed_step_seconds +=
        std::chrono::duration<double>(Sequence::Clock::now() - start).count();
  }
}

// The cache may hold half of a step, so nothing that was computed is used again.
void Engine::fail_all(const Error& error, std::vector<RequestUpdate>& updates) {
  log_error("a step failed, and its requests end: " + error.message);
  if (error.code != ErrorCode::kOutOfMemory) failure_ = error;
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence);
  std::sort(all.begin(), all.end(),
            [](const Sequence* a, const Sequence* b) { return a->id < b->id; });
  for (Sequence* sequence : all) fail(*sequence, error, updates);
  pool_.forget();
}

// A step failed: a weight that one of its tokens needs could not be read. Run by run, those that
// don't need it go on, and the others end with the error.
void Engine::run_apart(const std::vector<ScheduledRun>& runs, const Error& error,
                       std::vector<RequestUpdate>& updates) {
  for (const ScheduledRun& run : runs) {
    auto batch = runs.size() == 1 ? Result<StepBatch>(tl::unexpected(error))
                                  : run_step(std::span(&run, 1), *passes_);
    if (batch) {
      sample(*batch, updates);
    } else {
      fail(*run.sequence, std::move(batch).error(), updates);
    }
  }
}

void Engine::fail(Sequence& sequence, Error error, std::vector<RequestUpdate>& updates) {
  RequestUpdate update;
  update.finish_reason = FinishReason::kError;
  update.error = std::move(error);
  finish(sequence, std::move(update), updates);
}

// Before the step runs: it changes where the sequences stand.
StepCount& Engine::count_of(const std::vector<ScheduledRun>& runs) {
  const auto prefills = std::count_if(runs.begin(), runs.end(), [](const ScheduledRun& run) {
    return run.sequence->num_computed < run.sequence->prompt_size;
  });
  if (prefills == 0) return stats_.decode_steps;
  return prefills == static_cast<int64_t>(runs.size()) ? stats_.prefill_steps : stats_.mixed_steps;
}

void Engine::drop_ended(std::vector<RequestUpdate>& updates) {
  const auto now = Sequence::Clock::now();
  std::vector<Sequence*> ended;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->cancelled || (sequence->deadline && now >= *sequence->deadline)) {
      ended.push_back(sequence);
    }
  }
  std::sort(ended.begin(), ended.end(),
            [](const Sequence* a, const Sequence* b) { return a->id < b->id; });
  for (Sequence* sequence : ended) {
    RequestUpdate update;
    update.finish_reason = FinishReason::kAbort;
    finish(*sequence, std::move(update), updates);
  }
}

void Engine::finish(Sequence& sequence, RequestUpdate update, std::vector<RequestUpdate>& updates) {
  update.id = sequence.id;
  update.finished = true;
  update.num_prompt_tokens = sequence.prompt_size;
  update.num_cached_tokens = sequence.num_cached_tokens;
  updates.push_back(std::move(update));
  sequences_.erase(sequence.id);
  (void)scheduler_.remove(sequence);
}

void Engine::accept(Sequence& sequence, const ScheduledRun& run, SequenceSampler::Window window,
                    std::vector<RequestUpdate>& updates) {
  const int64_t num_drafts = sequence.drafts.size();
  const auto num_tokens = static_cast<int64_t>(window.token_ids.size());
  sequence.num_computed += run.num_tokens - num_drafts + num_tokens - 1;
  if (num_drafts > 0 && !window.is_cut) {
    ++stats_.num_windows;
    stats_.num_draft_tokens += num_drafts;
    DraftCount& count = stats_.drafts[window.rule.thinking ? 1 : 0][window.rule.relaxed ? 1 : 0];
    ++count.windows;
    count.draft_tokens += num_drafts;
    count.accepted_tokens += window.num_accepted;
    for (int64_t i = 0; i < window.num_accepted; ++i) ++stats_.accepted_at[static_cast<size_t>(i)];
    sequence.acceptance.add(num_drafts, window.num_accepted);
    draft_policy_.add(window.num_accepted);
  }
  stats_.num_generated_tokens += num_tokens;
  sequence.token_ids.insert(sequence.token_ids.end(), window.token_ids.begin(),
                            window.token_ids.end());
  const int64_t remaining = sequence.max_output - sequence.output_size();
  sequence.drafts.clear();
  const auto num_running = static_cast<int64_t>(scheduler_.running().size());
  sequence.num_draft_steps =
      window.ended
          ? 0
          : std::min(draft_policy_.num_drafts(sequence.acceptance, num_running), remaining - 1);

  RequestUpdate update;
  update.id = sequence.id;
  if (!window.is_cut) {
    update.num_draft_tokens = num_drafts;
    update.num_accepted_tokens = window.num_accepted;
  }
  update.queue_seconds = sequence.first_run ? seconds(*sequence.first_run - sequence.arrival) : 0;
  update.token_ids = std::move(window.token_ids);
  update.text = std::move(window.text);
  update.logprobs = std::move(window.logprobs);
  update.stop_text = std::move(window.stop_text);
  update.num_prompt_tokens = sequence.prompt_size;
  update.num_cached_tokens = sequence.num_cached_tokens;
  update.finished = window.ended.has_value();
  update.finish_reason = window.ended.value_or(FinishReason::kStop);
  updates.push_back(std::move(update));
}

// Log-probabilities of the prompt's own tokens, where they are wanted: row t stands before token
// t + 1.
void Engine::score_prompt(const StepBatch& batch, std::vector<RequestUpdate>& updates,
                          Failures& failed) {
  constexpr int64_t kRows = 32;
  for (const StepBatch::Run& run : batch.runs) {
    Sequence& sequence = *run.scheduled.sequence;
    if (sequence.num_prompt_logprobs < 0) continue;
    const int64_t end =
        std::min(run.first_position + run.scheduled.num_tokens, sequence.prompt_size - 1);
    // After a preemption the prompt runs again; what was told stays told.
    const int64_t first = std::max(run.first_position, sequence.num_scored);
    if (first >= end) continue;
    std::vector<RowRange> rows;
    for (int64_t at = first; at < end; at += kRows) {
      rows.push_back({run.first_row + at - run.first_position, std::min(kRows, end - at)});
    }
    std::optional<Error> error;
    RequestUpdate update;
    update.id = sequence.id;
    passes_->logits(HiddenRow::From::kStep, rows, [&](size_t i, const MatrixView& logits) {
      for (int64_t r = 0; r < logits.rows; ++r) {
        const int64_t position = run.first_position + rows[i].first - run.first_row + r;
        auto entry = logprobs({logits.row<float>(r), static_cast<size_t>(logits.cols)},
                              sequence.token_ids[static_cast<size_t>(position) + 1],
                              sequence.num_prompt_logprobs);
        if (entry) {
          update.prompt_logprobs.push_back(*std::move(entry));
        } else {
          error = std::move(entry).error();
        }
      }
    });
    if (error) {
      failed.emplace_back(&sequence, *std::move(error));
      continue;
    }
    sequence.num_scored = end;
    update.num_prompt_tokens = sequence.prompt_size;
    updates.push_back(std::move(update));
  }
}

void Engine::sample(const StepBatch& batch, std::vector<RequestUpdate>& updates) {
  // Which rows the head runs over, and for which run.
  std::vector<StepSampler::Window> windows;
  std::vector<size_t> sampling;
  std::vector<RequestUpdate> scored;
  Failures failed;
  score_prompt(batch, updates, failed);
  const auto is_failed = [&](const Sequence* sequence) {
    return std::any_of(failed.begin(), failed.end(),
                       [&](const auto& failure) { return failure.first == sequence; });
  };
  for (size_t i = 0; i < batch.runs.size(); ++i) {
    const StepBatch::Run& run = batch.runs[i];
    Sequence& sequence = *run.scheduled.sequence;
    const bool is_prefill = run.first_position < sequence.prompt_size;
    if (is_prefill) stats_.num_prompt_tokens += run.scheduled.num_tokens;
    if (is_prefill && run.first_position == sequence.num_cached_tokens &&
        sequence.num_preemptions == 0) {
      stats_.num_cached_tokens += sequence.num_cached_tokens;
    }
    if (!run.scheduled.samples) {
      sequence.num_computed += run.scheduled.num_tokens;
      sequence.num_draft_steps = 0;
      continue;
    }
    if (is_failed(&sequence)) {
      sequence.num_computed += run.scheduled.num_tokens;
      continue;
    }
    if (sequence.max_output == 0) {  // only its prompt was to be scored
      sequence.num_computed += run.scheduled.num_tokens;
      RequestUpdate update;
      update.id = sequence.id;
      update.finished = true;
      update.finish_reason = FinishReason::kLength;
      update.num_prompt_tokens = sequence.prompt_size;
      scored.push_back(std::move(update));
      continue;
    }
    const int64_t window = sequence.drafts.size() + 1;
    windows.push_back({&sequence, {run.first_row + run.scheduled.num_tokens - window, window}});
    sampling.push_back(i);
  }
  const size_t first_update = updates.size();
  std::move(scored.begin(), scored.end(), std::back_inserter(updates));
  sampler_.sample(windows, [&](size_t i, Result<SequenceSampler::Window> window) {
    const ScheduledRun& run = batch.runs[sampling[i]].scheduled;
    if (window) {
      accept(*run.sequence, run, *std::move(window), updates);
    } else {
      failed.emplace_back(run.sequence, std::move(window).error());
    }
  });

  // What goes on is drafted for and published; what ended is taken out.
  std::vector<const Sequence*> ended;
  for (size_t i = first_update; i < updates.size(); ++i) {
    if (updates[i].finished) ended.push_back(sequences_.at(updates[i].id));
  }
  for (const auto& [sequence, error] : failed) ended.push_back(sequence);
  std::vector<StepBatch::Run> alive;
  for (const StepBatch::Run& run : batch.runs) {
    if (std::find(ended.begin(), ended.end(), run.scheduled.sequence) == ended.end()) {
      alive.push_back(run);
    }
  }
  if (drafter_) {
    drafter_->keep_hidden(batch);
    const Status drafted = drafter_->draft(alive, sampler_, options_.draft.draft_sampling);
    // The MTP layer's cache has a hole then, for every sequence that was to go on.
    for (const StepBatch::Run& run : alive) {
      if (!drafted) failed.emplace_back(run.scheduled.sequence, drafted.error());
    }
  }
  for (const StepBatch::Run& run : batch.runs) {
    if (!is_failed(run.scheduled.sequence)) scheduler_.publish(*run.scheduled.sequence);
  }
  for (size_t i = first_update; i < updates.size(); ++i) {
    if (!updates[i].finished) continue;
    const auto found = sequences_.find(updates[i].id);
    (void)scheduler_.remove(*found->second);
    sequences_.erase(found);
  }
  for (auto& [sequence, error] : failed) fail(*sequence, std::move(error), updates);
}

Result<MemoryReport> Engine::memory() const {
  return memory_report(device(), passes_->graph_stats().device_bytes);
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.num_preemptions = scheduler_.num_preemptions();
  stats.num_running = static_cast<int64_t>(scheduler_.running().size());
  stats.num_waiting = static_cast<int64_t>(scheduler_.waiting().size());
  stats.num_blocks = pool_.num_blocks();
  stats.num_used_blocks = pool_.num_used();
  stats.num_cached_blocks = pool_.num_cached();
  if (const ExpertStore* store = model_.weights.expert_store) stats.experts = store->stats();
  stats.graphs = passes_->graph_stats();
  stats.num_device_windows = sampler_.num_device_windows();
  stats.num_host_windows = sampler_.num_host_windows();
  stats.num_device_drafts = sampler_.num_device_drafts();
  stats.num_host_drafts = sampler_.num_host_drafts();
  return stats;
}

}  // namespace nibble
