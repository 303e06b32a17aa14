#include "nibble/engine/scheduler.h"

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble {
namespace {

constexpr int kMaxPreemptions = 3;  // of a sequence, until it needs its full room to run again

// Higher priority first, then earlier arrival.
bool comes_before(const Sequence& a, const Sequence& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.id < b.id;
}

template <typename Container>
void insert_in_order(Container& container, std::unique_ptr<Sequence> sequence) {
  const auto place = std::find_if(container.begin(), container.end(), [&](const auto& other) {
    return comes_before(*sequence, *other);
  });
  container.insert(place, std::move(sequence));
}

template <typename Container>
std::unique_ptr<Sequence> extract(Container& container, const Sequence& sequence) {
  const auto found = std::find_if(container.begin(), container.end(),
                                  [&](const auto& other) { return other.get() == &sequence; });
  if (found == container.end()) return nullptr;
  std::unique_ptr<Sequence> taken = std::move(*found);
  container.erase(found);
  return taken;
}

// Of the block_size tokens from `first` on, how many belong to the prompt.
int32_t num_expanded(const Sequence& sequence, int64_t first, int64_t block_size) {
  return static_cast<int32_t>(std::clamp<int64_t>(sequence.prompt_size - first, 0, block_size));
}

}  // namespace

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  insert_in_order(waiting_, std::move(sequence));
}

bool Scheduler::fits(int64_t num_tokens) const {
  return blocks_for(num_tokens + options_.num_drafts + 1) <= pool_.num_blocks() &&
         (options_.enable_chunked_prefill || num_tokens <= options_.max_num_tokens);
}

// Blocks for the positions below num_computed + num_tokens, and for the MTP slots of the drafts
// that may follow them.
bool Scheduler::reserve(Sequence& sequence, int64_t num_tokens) {
  const int64_t ahead = options_.num_drafts > 0 ? options_.num_drafts + 1 : 0;
  const int64_t end = sequence.num_computed + num_tokens + ahead;
  const int64_t needed = blocks_for(end) - static_cast<int64_t>(sequence.block_table.size());
  if (needed > pool_.num_free()) return false;
  for (int64_t i = 0; i < needed; ++i) sequence.block_table.push_back(*pool_.take());
  return true;
}

void Scheduler::give_up_blocks(Sequence& sequence) {
  for (auto it = sequence.block_table.rbegin(); it != sequence.block_table.rend(); ++it) {
    pool_.release(*it);
  }
  sequence.block_table.clear();
  sequence.num_computed = 0;
  sequence.num_mtp = 0;
  sequence.num_published = 0;
  sequence.drafts.clear();
}

// Frees the last running sequence behind `sequence` in order. False when there is none: then it is
// for `sequence` itself to wait.
bool Scheduler::preempt_for(const Sequence& sequence) {
  if (running_.empty() || running_.back().get() == &sequence) return false;
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  give_up_blocks(*victim);
  ++victim->num_preemptions;
  ++num_preemptions_;
  insert_in_order(waiting_, std::move(victim));
  return true;
}

// Shares the published blocks that hold the beginning of the sequence. The last token always runs:
// its logits are wanted. With the MTP layer the entry of the first pair behind the found blocks
// needs the hidden state of their last token, which the engine keeps for each published block.
void Scheduler::find_prefix(Sequence& sequence) {
  sequence.parent = pool_.root(sequence.cache_salt);
  if (!options_.enable_block_reuse || !sequence.use_prefix_cache) return;
  const int64_t block_size = pool_.block_size();
  for (int64_t first = 0; first + block_size < sequence.size(); first += block_size) {
    const auto tokens = std::span<const int32_t>(sequence.token_ids)
                            .subspan(static_cast<size_t>(first), static_cast<size_t>(block_size));
    const auto block =
        pool_.find(sequence.parent, tokens, num_expanded(sequence, first, block_size));
    if (!block) break;
    pool_.share(*block);
    sequence.block_table.push_back(*block);
    sequence.parent = pool_.identity(*block);
    ++sequence.num_published;
    sequence.num_computed += block_size;
  }
  // The pair of the last found token lies in the next block.
  sequence.num_mtp = std::max<int64_t>(0, sequence.num_computed - 1);
}

int64_t Scheduler::count_cached(std::span<const int32_t> prompt, const std::string& salt) {
  if (!options_.enable_block_reuse) return 0;
  const int64_t block_size = pool_.block_size();
  int64_t parent = pool_.root(salt);
  int64_t count = 0;
  while (count + block_size < static_cast<int64_t>(prompt.size())) {
    const auto tokens = prompt.subspan(static_cast<size_t>(count), static_cast<size_t>(block_size));
    const auto block = pool_.find(parent, tokens, static_cast<int32_t>(block_size));
    if (!block) break;
    parent = pool_.identity(*block);
    count += block_size;
  }
  return count;
}

void Scheduler::publish(Sequence& sequence) {
  if (!options_.enable_block_reuse) return;
  const int64_t block_size = pool_.block_size();
  // With the MTP layer slot t + 1 holds pair t: a block is whole when all its pairs are there too.
  const int64_t valid = options_.num_drafts > 0
                            ? std::min(sequence.num_computed, sequence.num_mtp + 1)
                            : sequence.num_computed;
  while ((sequence.num_published + 1) * block_size <= valid) {
    const int64_t first = sequence.num_published * block_size;
    const int32_t block = sequence.block_table[static_cast<size_t>(sequence.num_published)];
    const auto tokens = std::span<const int32_t>(sequence.token_ids)
                            .subspan(static_cast<size_t>(first), static_cast<size_t>(block_size));
    const int32_t expanded = num_expanded(sequence, first, block_size);
    if (pool_.identity(block) < 0) pool_.publish(block, sequence.parent, tokens, expanded);
    // Where the same content was published by another, the chain goes on behind that one.
    const auto known = pool_.find(sequence.parent, tokens, expanded);
    NIBBLE_CHECK(known.has_value());
    sequence.parent = pool_.identity(*known);
    ++sequence.num_published;
  }
}

// Whether a waiting sequence may join now: the blocks for all its tokens, less those found, are
// free, and one in a hundred stays free for those that run already.
bool Scheduler::admit(Sequence& sequence) {
  find_prefix(sequence);
  // One that was preempted again and again waits for room for its whole answer.
  const int64_t tokens = sequence.num_preemptions > kMaxPreemptions
                             ? sequence.prompt_size + sequence.max_output
                             : sequence.size();
  const int64_t needed = blocks_for(tokens + options_.num_drafts + 1) -
                         static_cast<int64_t>(sequence.block_table.size());
  const int64_t spare = running_.empty() ? 0 : std::max<int64_t>(1, pool_.num_blocks() / 100);
  if (needed + spare <= pool_.num_free()) return true;
  give_up_blocks(sequence);
  return false;
}

// Cut to whole blocks unless the prompt's end is within reach, so that blocks fill at chunk
// borders.
int64_t Scheduler::prefill_chunk(const Sequence& sequence, int64_t budget) const {
  const int64_t pending = sequence.num_pending();
  if (pending <= budget) return pending;
  // What was preempted may have grown beyond a step, and must come back all the same.
  if (!options_.enable_chunked_prefill && sequence.num_preemptions == 0) return 0;
  const int64_t end = sequence.num_computed + budget;
  const int64_t whole = end / pool_.block_size() * pool_.block_size() - sequence.num_computed;
  return whole > 0 ? whole : budget;
}

std::vector<ScheduledRun> Scheduler::schedule() {
  std::vector<ScheduledRun> runs;
  int64_t budget = options_.max_num_tokens;

  // Decoding first. Preemption takes from the back of running_, so what was scheduled stays.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_pending() != 1) continue;
    const auto drafts = sequence.drafts.size();
    if (budget < 1 + drafts) sequence.drafts.clear();
    if (budget < 1) break;
    const int64_t tokens = 1 + sequence.drafts.size();
    bool reserved = reserve(sequence, tokens);
    while (!reserved && preempt_for(sequence)) reserved = reserve(sequence, tokens);
    if (!reserved) {  // the last one in order: it waits until others have ended
      NIBBLE_CHECK(i + 1 == running_.size());
      std::unique_ptr<Sequence> taken = std::move(running_.back());
      running_.pop_back();
      give_up_blocks(*taken);
      ++taken->num_preemptions;
      ++num_preemptions_;
      insert_in_order(waiting_, std::move(taken));
      break;
    }
    runs.push_back({&sequence, tokens, true});
    budget -= tokens;
  }

  // Prompts that have begun, then the queue in order.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_pending() == 1) continue;
    const int64_t chunk = prefill_chunk(sequence, budget);
    if (chunk == 0) continue;
    runs.push_back({&sequence, chunk, chunk == sequence.num_pending()});
    budget -= chunk;
  }
  while (!waiting_.empty() && budget > 0 &&
         static_cast<int64_t>(running_.size()) < options_.max_batch_size) {
    Sequence& sequence = *waiting_.front();
    if (!admit(sequence)) break;
    const int64_t chunk = prefill_chunk(sequence, budget);
    // All its blocks at once: two prompts that are half done could otherwise wait for each other.
    if (chunk == 0 || !reserve(sequence, sequence.num_pending())) {
      give_up_blocks(sequence);
      break;
    }
    if (sequence.num_preemptions == 0) sequence.num_cached_tokens = sequence.num_computed;
    runs.push_back({&sequence, chunk, chunk == sequence.num_pending()});
    budget -= chunk;
    std::unique_ptr<Sequence> admitted = std::move(waiting_.front());
    waiting_.pop_front();
    insert_in_order(running_, std::move(admitted));
  }
  return runs;
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence) {
  give_up_blocks(sequence);
  std::unique_ptr<Sequence> taken = extract(running_, sequence);
  if (taken == nullptr) taken = extract(waiting_, sequence);
  NIBBLE_CHECK(taken != nullptr);
  return taken;
}

}  // namespace nibble
