// The scheduler and the block pool without a model, under random events: requests arrive, decode,
// end and are cancelled while blocks run out.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "nibble/engine/scheduler.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

bool precedes(const Sequence& a, const Sequence& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.id < b.id;
}

class RandomEvents {
 public:
  RandomEvents(uint64_t seed, const SchedulerOptions& options, int32_t num_blocks)
      : rng_(seed),
        options_(options),
        pool_(num_blocks, kBlockSize),
        scheduler_(options, pool_),
        tokenizer_(Tokenizer::load(testing::demo_checkpoint()).value()) {}

  // Everything that may happen, weighted so that the pool is usually full.
  void event() {
    const auto kind = rng_() % 100;
    if (kind < 22) {
      arrive();
    } else if (kind < 25) {
      cancel_one();
    } else {
      step();
    }
    ++num_events_;
  }

  void drain() {
    for (int64_t i = 0; !is_empty(); ++i) {
      ASSERT_LT(i, 1'000'000) << "requests that never end";
      step();
    }
    EXPECT_EQ(pool_.num_used(), 0);
    EXPECT_EQ(pool_.num_free(), pool_.num_blocks());
  }

  bool is_empty() const { return scheduler_.running().empty() && scheduler_.waiting().empty(); }
  int64_t num_events() const { return num_events_; }
  int64_t num_finished() const { return num_finished_; }
  int64_t num_found_tokens() const { return num_found_tokens_; }
  int64_t num_preemptions() const { return scheduler_.num_preemptions(); }
  int64_t longest_wait() const { return longest_wait_; }

 private:
  static constexpr int32_t kBlockSize = 4;

  void arrive() {
    if (scheduler_.waiting().size() > 60) return;
    SamplingContext context;
    context.tokenizer = &tokenizer_;
    context.vocab_size = tokenizer_.vocab_size();
    // Two salts, three beginnings: many prompts share a prefix.
    const auto prompt_size = 1 + static_cast<int64_t>(rng_() % 40);
    std::vector<int32_t> prompt(static_cast<size_t>(prompt_size));
    const auto family = static_cast<int32_t>(rng_() % 3);
    for (size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] =
          i < 16 ? 100 * family + static_cast<int32_t>(i) : static_cast<int32_t>(rng_() % 2);
    }
    const auto max_output = 1 + static_cast<int64_t>(rng_() % 40);
    auto sequence = std::make_unique<Sequence>(
        SequenceSampler::create(context, {}, 0, prompt, max_output).value());
    sequence->id = next_id_++;
    sequence->priority = rng_() % 10 == 0 ? static_cast<int>(rng_() % 3) - 1 : 0;
    sequence->cache_salt = rng_() % 2 == 0 ? "" : "tenant";
    sequence->token_ids = std::move(prompt);
    sequence->prompt_size = prompt_size;
    sequence->max_output = max_output;
    ASSERT_TRUE(scheduler_.fits(prompt_size));
    arrived_at_[sequence->id] = num_steps_;
    scheduler_.add(std::move(sequence));
  }

  void cancel_one() {
    const auto& running = scheduler_.running();
    const auto& waiting = scheduler_.waiting();
    const size_t count = running.size() + waiting.size();
    if (count == 0) return;
    const size_t pick = rng_() % count;
    end(pick < running.size() ? *running[pick] : *waiting[pick - running.size()]);
  }

  void end(Sequence& sequence) {
    arrived_at_.erase(sequence.id);
    (void)scheduler_.remove(sequence);
  }

  // The first of all in order; null without any.
  const Sequence* first_in_order() const {
    const Sequence* first = nullptr;
    const auto look = [&](const auto& sequences) {
      for (const auto& sequence : sequences) {
        if (first == nullptr || precedes(*sequence, *first)) first = sequence.get();
      }
    };
    look(scheduler_.running());
    look(scheduler_.waiting());
    return first;
  }

  void step() {
    const Sequence* const first = first_in_order();
    const int preempted_before = first == nullptr ? 0 : first->num_preemptions;
    ran_before_.clear();
    for (const auto& sequence : scheduler_.running()) ran_before_.insert(sequence->id);
    const bool first_ran = first != nullptr && ran_before_.contains(first->id);
    const auto runs = scheduler_.schedule();
    ++num_steps_;
    ASSERT_EQ(runs.empty(), first == nullptr) << "requests wait and nothing runs";
    if (first_ran) {
      ASSERT_EQ(first->num_preemptions, preempted_before) << "the first in order was preempted";
    }
    check_runs(runs);
    check_blocks(runs);
    advance(runs);
  }

  void check_runs(const std::vector<ScheduledRun>& runs) {
    int64_t tokens = 0;
    std::set<const Sequence*> seen;
    for (const ScheduledRun& run : runs) {
      tokens += run.num_tokens;
      ASSERT_GE(run.num_tokens, 1);
      ASSERT_TRUE(seen.insert(run.sequence).second) << "scheduled twice";
      ASSERT_LE(run.sequence->num_computed + run.num_tokens,
                run.sequence->size() + run.sequence->drafts.size());
    }
    ASSERT_LE(tokens, options_.max_num_tokens);
    ASSERT_LE(static_cast<int64_t>(scheduler_.running().size()), options_.max_batch_size);
    // Nobody who comes before a newcomer waits: requests are let in in order.
    for (const auto& running : scheduler_.running()) {
      if (ran_before_.contains(running->id)) continue;
      for (const auto& waiting : scheduler_.waiting()) {
        ASSERT_TRUE(precedes(*running, *waiting)) << running->id << " overtook " << waiting->id;
      }
    }
  }

  void check_blocks(const std::vector<ScheduledRun>& runs) {
    struct Owner {
      const Sequence* sequence;
      size_t index;
    };
    std::map<int32_t, std::vector<Owner>> owners;
    for (const auto& waiting : scheduler_.waiting()) ASSERT_TRUE(waiting->block_table.empty());
    for (const auto& sequence : scheduler_.running()) {
      std::set<int32_t> own;
      for (size_t i = 0; i < sequence->block_table.size(); ++i) {
        ASSERT_TRUE(own.insert(sequence->block_table[i]).second) << "one block in two places";
        owners[sequence->block_table[i]].push_back({sequence.get(), i});
      }
    }
    for (const ScheduledRun& run : runs) {
      const int64_t end = run.sequence->num_computed + run.num_tokens;
      ASSERT_GE(static_cast<int64_t>(run.sequence->block_table.size()) * kBlockSize, end);
    }
    ASSERT_EQ(static_cast<int32_t>(owners.size()), pool_.num_used());
    for (const auto& [block, list] : owners) {
      ASSERT_EQ(pool_.num_users(block), static_cast<int32_t>(list.size()));
      for (const Owner& owner : list) {
        // A shared block holds the same tokens behind the same tokens, under one salt, all of them
        // computed; nobody writes into it.
        if (list.size() == 1) break;
        const Sequence& a = *list.front().sequence;
        const Sequence& b = *owner.sequence;
        ASSERT_EQ(owner.index, list.front().index);
        ASSERT_EQ(a.cache_salt, b.cache_salt);
        ASSERT_LT(static_cast<int64_t>(owner.index), b.num_published);
        const size_t end = (owner.index + 1) * kBlockSize;
        ASSERT_TRUE(std::equal(a.token_ids.begin(), a.token_ids.begin() + static_cast<long>(end),
                               b.token_ids.begin()));
      }
    }
  }

  // What the engine does with the runs of a step: some drafts stand, a token comes, some end.
  void advance(const std::vector<ScheduledRun>& runs) {
    std::vector<Sequence*> ended;
    for (const ScheduledRun& run : runs) {
      Sequence& sequence = *run.sequence;
      if (sequence.num_cached_tokens > 0 && sequence.num_computed == sequence.num_cached_tokens) {
        num_found_tokens_ += sequence.num_cached_tokens;
      }
      const int64_t drafts = run.samples ? sequence.drafts.size() : 0;
      if (!run.samples) {
        sequence.num_computed += run.num_tokens;
      } else {
        const int64_t left = sequence.max_output - sequence.output_size();
        const int64_t accepted =
            std::min(drafts == 0 ? 0 : static_cast<int64_t>(rng_() % (drafts + 1)), left - 1);
        sequence.num_computed += run.num_tokens - drafts + accepted;
        for (int64_t i = 0; i <= accepted; ++i) {
          sequence.token_ids.push_back(static_cast<int32_t>(rng_() % 2));
        }
        sequence.drafts.clear();
        const int64_t remaining = sequence.max_output - sequence.output_size();
        if (remaining == 0 || rng_() % 50 == 0) ended.push_back(&sequence);
        const int64_t next = std::min(options_.num_drafts, remaining - 1);
        for (int64_t i = 0; i < next; ++i) sequence.drafts.token_ids.push_back(1);
        if (sequence.output_size() == accepted + 1) {
          longest_wait_ = std::max(longest_wait_, num_steps_ - arrived_at_.at(sequence.id));
        }
      }
      if (options_.num_drafts > 0) sequence.num_mtp = sequence.num_computed;
      scheduler_.publish(sequence);
    }
    for (Sequence* sequence : ended) {
      end(*sequence);
      ++num_finished_;
    }
  }

  std::mt19937_64 rng_;
  SchedulerOptions options_;
  BlockPool pool_;
  Scheduler scheduler_;
  Tokenizer tokenizer_;
  std::map<uint64_t, int64_t> arrived_at_;
  std::set<uint64_t> ran_before_;  // this step
  uint64_t next_id_ = 1;
  int64_t num_events_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_finished_ = 0;
  int64_t num_found_tokens_ = 0;
  int64_t longest_wait_ = 0;
};

TEST(SchedulerUnderRandomEvents, NoBlockHasTwoOwnersAllComeBackAndNobodyStarves) {
  int64_t events = 0;
  int64_t finished = 0;
  int64_t found = 0;
  int64_t preemptions = 0;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    SchedulerOptions options;
    options.max_batch_size = 2 + static_cast<int64_t>(seed % 3) * 5;
    options.num_drafts = seed % 2 == 0 ? 0 : 3;
    options.max_num_tokens = options.max_batch_size * (1 + options.num_drafts) + 7 * (seed % 4);
    options.enable_block_reuse = seed % 5 != 4;
    RandomEvents run(seed, options, 30 + static_cast<int32_t>(seed) * 8);
    for (int i = 0; i < 10'000 && !::testing::Test::HasFatalFailure(); ++i) run.event();
    if (::testing::Test::HasFatalFailure()) FAIL() << "seed " << seed;
    run.drain();
    events += run.num_events();
    finished += run.num_finished();
    found += run.num_found_tokens();
    preemptions += run.num_preemptions();
    // At most 60 wait, each for at most 80 steps of 81 tokens or less on its way: what comes first
    // always runs, so this bound can't be passed without starving somebody.
    EXPECT_LT(run.longest_wait(), 60 * 81);
  }
  std::cout << events << " events, " << finished << " requests ended, " << preemptions
            << " preemptions, " << found << " prompt tokens found\n";
  EXPECT_EQ(events, 100'000);
  EXPECT_GT(finished, 10'000);
  EXPECT_GT(preemptions, 300);
  EXPECT_GT(found, 10'000);
}

}  // namespace
}  // namespace nibble
