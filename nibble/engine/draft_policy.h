// How many drafts a sequence makes in its next step.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>

#include "nibble/base/result.h"

namespace nibble {

inline constexpr int64_t kMaxDrafts = 8;  // of a window

// Names as in TensorRT-LLM's speculative_config; spec serving section 6.5.
struct DraftOptions {
  // Drafts are drawn from the MTP layer's probabilities, not its argmax. The law of the output
  // stays the same, its text doesn't.
  bool draft_sampling = false;
  // Fewer drafts for a sequence whose drafts are refused: the number with the most tokens for the
  // work, where a draft costs draft_cost of a step without drafts.
  bool adaptive = false;
  double draft_cost = 0.1;  // 0..1
  // No drafts while more sequences than this run; 0: no limit.
  int64_t max_concurrency = 0;
  // Batch size -> drafts, 0 .. num_drafts of the engine: the largest key that is not above the
  // batch counts. Without one: num_drafts.
  std::map<int64_t, int64_t> draft_len_schedule = {};
  // No more drafts at all once the mean acceptance length of the last acceptance_window windows is
  // below the threshold. 0: never.
  int64_t acceptance_window = 0;
  double acceptance_length_threshold = 0;
};

// For an engine with at most num_drafts drafts. Errors: kInvalidArgument naming an option and its
// range.
Status validate(const DraftOptions& options, int64_t num_drafts);

// How often a sequence's drafts were accepted lately, by place.
class AcceptanceHistory {
 public:
  // A window of num_drafts drafts of which num_accepted stood.
  void add(int64_t num_drafts, int64_t num_accepted);

  // The number of drafts, 1 .. max_drafts, with the most expected tokens for the work.
  int64_t best_num_drafts(int64_t max_drafts, double draft_cost) const;

 private:
  // P(draft i stands | those before it do), a moving average. A place that wasn't tried moves
  // slowly towards 1, so that it is tried again some day.
  std::array<double, kMaxDrafts> stands_ = {0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8};
};

// One for an engine. Not thread-safe.
class DraftPolicy {
 public:
  DraftPolicy(DraftOptions options, int64_t num_drafts)
      : options_(std::move(options)), num_drafts_(num_drafts) {}

  // Counts a window for the threshold.
  void add(int64_t num_accepted);

  // Drafts of a sequence's next window while num_running sequences run.
  int64_t num_drafts(const AcceptanceHistory& history, int64_t num_running) const;

  bool is_off() const { return off_; }

 private:
  DraftOptions options_;
  int64_t num_drafts_ = 0;
  std::deque<int64_t> window_;  // accepted drafts of the last windows
  int64_t window_sum_ = 0;
  bool off_ = false;
};

}  // namespace nibble
