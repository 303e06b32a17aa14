#include "nibble/engine/data_parallel_engine.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <iterator>
#include <thread>
#include <utility>

namespace nibble {

DataParallelEngine::DataParallelEngine(LoadedModel& model, const EngineOptions& options,
                                       std::unique_ptr<LaneGroup> group)
    : Engine(model, options, group->passes(0), group->num_blocks()), group_(std::move(group)) {}

Result<std::unique_ptr<Engine>> DataParallelEngine::create(LoadedModel& model,
                                                           const EngineOptions& options,
                                                           const PassPlan& plan) {
  auto group = NIBBLE_TRY(LaneGroup::create(model, plan));
  const int64_t num_blocks = group->num_blocks();
  std::unique_ptr<DataParallelEngine> engine(
      new DataParallelEngine(model, options, std::move(group)));
  NIBBLE_TRY(engine->settle_max_seq_len());
  for (int lane = 1; lane < model.comm->size(); ++lane) {
    std::unique_ptr<Engine> other(
        new Engine(model, options, engine->group_->passes(lane), num_blocks));
    NIBBLE_TRY(other->settle_max_seq_len());
    engine->others_.push_back(std::move(other));
  }
  return std::unique_ptr<Engine>(std::move(engine));
}

// Ids of all lanes in one row: lane l's id k is k * num_lanes + l.
Result<uint64_t> DataParallelEngine::add(Request request) {
  std::vector<LaneLoad> loads{lane_load(request)};
  for (const auto& lane : others_) loads.push_back(lane->lane_load(request));
  LaneLimits limits;
  limits.num_tokens = std::max(limits.num_tokens, options_.max_num_tokens);
  const int best = choose_lane(loads, limits);
  auto id = best == 0 ? Engine::add(std::move(request))
                      : others_[static_cast<size_t>(best) - 1]->add(std::move(request));
  if (!id) return id;
  return *id * static_cast<uint64_t>(num_lanes()) + static_cast<uint64_t>(best);
}

void DataParallelEngine::cancel(uint64_t id) {
  const auto lanes = static_cast<uint64_t>(num_lanes());
  const uint64_t lane = id % lanes;
  if (lane == 0) {
    Engine::cancel(id / lanes);
  } else {
    others_[lane - 1]->cancel(id / lanes);
  }
}

bool DataParallelEngine::lane_has_work(int lane) const {
  return lane == 0 ? Engine::has_work() : others_[static_cast<size_t>(lane) - 1]->has_work();
}

bool DataParallelEngine::has_work() const {
  for (int lane = 0; lane < num_lanes(); ++lane) {
    if (lane_has_work(lane)) return true;
  }
  return false;
}

std::vector<RequestUpdate> DataParallelEngine::step_lane(int lane) {
  std::vector<RequestUpdate> updates =
      lane == 0 ? Engine::step() : others_[static_cast<size_t>(lane) - 1]->step();
  for (RequestUpdate& update : updates) {
    update.id = update.id * static_cast<uint64_t>(num_lanes()) + static_cast<uint64_t>(lane);
  }
  return updates;
}

std::vector<RequestUpdate> DataParallelEngine::step() {
  std::vector<int> lanes;
  for (int lane = 0; lane < num_lanes(); ++lane) {
    if (lane_has_work(lane)) lanes.push_back(lane);
  }
  if (lanes.empty()) return {};
  const auto start = std::chrono::steady_clock::now();
  const LaneWork before = work_of_lanes();
  group_->enter(static_cast<int>(lanes.size()));
  std::vector<std::vector<RequestUpdate>> updates(lanes.size());
  std::vector<std::exception_ptr> failures(lanes.size());
  const auto run = [&](size_t i) {
    try {
      updates[i] = step_lane(lanes[i]);
    } catch (...) {
      failures[i] = std::current_exception();
    }
    group_->leave();
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < lanes.size(); ++i) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  for (const auto& lane : others_) {
    if (lane->failure_ && !failure_) failure_ = lane->failure_;
  }
  count_step(before, start);
  std::vector<RequestUpdate> all;
  for (auto& of_lane : updates) {
    std::move(of_lane.begin(), of_lane.end(), std::back_inserter(all));
  }
  return all;
}

DataParallelEngine::LaneWork DataParallelEngine::work_of_lanes() const {
  LaneWork work;
  const auto add = [&work](const EngineStats& stats) {
    work.prefill_steps += stats.prefill_steps.steps;
    work.decode_steps += stats.decode_steps.steps;
    for (const StepCount* const count :
         {&stats.prefill_steps, &stats.decode_steps, &stats.mixed_steps}) {
      work.steps += count->steps;
      work.tokens += count->tokens;
      work.sequences += count->sequences;
    }
  };
  add(stats_);
  for (const auto& lane : others_) add(lane->stats_);
  return work;
}

// What the lanes have done since `before` is one step of all ranks, of one kind where theirs were.
void DataParallelEngine::count_step(const LaneWork& before,
                                    std::chrono::steady_clock::time_point start) {
  const LaneWork now = work_of_lanes();
  const int64_t steps = now.steps - before.steps;
  if (steps == 0) return;
  StepCount& count = now.prefill_steps - before.prefill_steps == steps ? prefill_steps_
                     : now.decode_steps - before.decode_steps == steps ? decode_steps_
                                                                       : mixed_steps_;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  count.add(seconds.count(), now.tokens - before.tokens, now.sequences - before.sequences);
}

EngineStats DataParallelEngine::stats() const {
  EngineStats all = Engine::stats();
  all.num_steps = prefill_steps_.steps + decode_steps_.steps + mixed_steps_.steps;
  all.prefill_steps = prefill_steps_;
  all.decode_steps = decode_steps_;
  all.mixed_steps = mixed_steps_;
  for (const auto& lane : others_) {
    const EngineStats stats = lane->stats();
    all.num_prompt_tokens += stats.num_prompt_tokens;
    all.num_generated_tokens += stats.num_generated_tokens;
    all.num_cached_tokens += stats.num_cached_tokens;
    all.num_preemptions += stats.num_preemptions;
    all.num_windows += stats.num_windows;
    all.num_draft_tokens += stats.num_draft_tokens;
    for (size_t i = 0; i < all.accepted_at.size(); ++i) all.accepted_at[i] += stats.accepted_at[i];
    all.num_running += stats.num_running;
    all.num_waiting += stats.num_waiting;
    all.num_blocks += stats.num_blocks;
    all.num_used_blocks += stats.num_used_blocks;
    all.num_cached_blocks += stats.num_cached_blocks;
    for (int thinking : {0, 1}) {
      for (int relaxed : {0, 1}) {
        const DraftCount& count = stats.drafts[thinking][relaxed];
        all.drafts[thinking][relaxed].windows += count.windows;
        all.drafts[thinking][relaxed].draft_tokens += count.draft_tokens;
        all.drafts[thinking][relaxed].accepted_tokens += count.accepted_tokens;
      }
    }
    all.last_step_timestamp = std::max(all.last_step_timestamp, stats.last_step_timestamp);
    all.num_guided += stats.num_guided;
    all.guided_seconds += stats.guided_seconds;
    all.num_device_windows += stats.num_device_windows;
    all.num_host_windows += stats.num_host_windows;
    all.num_device_drafts += stats.num_device_drafts;
    all.num_host_drafts += stats.num_host_drafts;
  }
  return all;
}

void DataParallelEngine::reset_prefix_cache() {
  Engine::reset_prefix_cache();
  for (const auto& lane : others_) lane->reset_prefix_cache();
}

}  // namespace nibble
