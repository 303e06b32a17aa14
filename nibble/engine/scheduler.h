// Which sequences run in a step, and how many tokens of each.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "nibble/engine/block_pool.h"
#include "nibble/engine/sequence.h"

namespace nibble {

struct SchedulerOptions {
  int64_t max_batch_size = 32;   // sequences of a step
  int64_t max_num_tokens = 512;  // tokens of a step, drafts included
  int64_t num_drafts = 0;        // that each decoding sequence may carry
  bool enable_block_reuse = true;
  bool enable_chunked_prefill = true;  // of prompts; what was preempted always is
};

// A run of tokens of one sequence: num_tokens from num_computed on, of which the last
// drafts.size() are drafts. samples: the run reaches the sequence's end, so it gives a token.
struct ScheduledRun {
  Sequence* sequence = nullptr;
  int64_t num_tokens = 0;
  bool samples = false;
};

// Owns waiting and running sequences. Decoding sequences come first in every step, prefill fills
// what is left of max_num_tokens, in chunks. When blocks run out, the running sequence of the
// lowest priority and latest arrival gives its own up and is computed again later; the oldest one
// of the highest priority never does, so that there is always progress.
//
// Not thread-safe.
class Scheduler {
 public:
  // `pool` must outlive it.
  Scheduler(const SchedulerOptions& options, BlockPool& pool) : options_(options), pool_(pool) {}

  // Puts a sequence into the queue. fits() has to hold for it.
  void add(std::unique_ptr<Sequence> sequence);

  // Whether a sequence with this many tokens at its end could ever run.
  bool fits(int64_t num_tokens) const;

  // How many leading tokens of a prompt are cached, under this salt.
  int64_t count_cached(std::span<const int32_t> prompt, const std::string& salt);

  // The runs of the next step; empty when nothing can run. Blocks for them are taken.
  std::vector<ScheduledRun> schedule();

  // Takes a sequence out and frees its blocks.
  std::unique_ptr<Sequence> remove(Sequence& sequence);

  // Makes the blocks that have become full findable. Call after num_computed (and num_mtp) grew.
  void publish(Sequence& sequence);

  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  const std::deque<std::unique_ptr<Sequence>>& waiting() const { return waiting_; }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  bool reserve(Sequence& sequence, int64_t num_tokens);
  bool admit(Sequence& sequence);
  void find_prefix(Sequence& sequence);
  void give_up_blocks(Sequence& sequence);
  bool preempt_for(const Sequence& sequence);
  int64_t prefill_chunk(const Sequence& sequence, int64_t budget) const;
  int64_t blocks_for(int64_t num_tokens) const {
    return (num_tokens + pool_.block_size() - 1) / pool_.block_size();
  }

  SchedulerOptions options_;
  BlockPool& pool_;
  std::vector<std::unique_ptr<Sequence>> running_;  // highest priority, earliest arrival first
  std::deque<std::unique_ptr<Sequence>> waiting_;   // the same order; preempted ones by it too
  int64_t num_preemptions_ = 0;
};

}  // namespace nibble
