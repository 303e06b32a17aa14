#include "nibble/engine/draft_policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr double kAverageWeight = 0.15;  // of the newest window
constexpr double kCuriosity = 0.02;      // the step of a place that wasn't tried

}  // namespace

Status validate(const DraftOptions& options, int64_t num_drafts) {
  const auto check = [](std::string_view name, auto value, auto low, auto high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument(fmt::format("{} is {}, expected {}..{}", name, value, low, high));
  };
  constexpr int64_t kMany = int64_t{1} << 24;
  NIBBLE_TRY(check("draft_cost", options.draft_cost, 0.0, 1.0));
  NIBBLE_TRY(check("max_concurrency", options.max_concurrency, int64_t{0}, kMany));
  NIBBLE_TRY(check("acceptance_window", options.acceptance_window, int64_t{0}, kMany));
  NIBBLE_TRY(check("acceptance_length_threshold", options.acceptance_length_threshold, 0.0,
                   static_cast<double>(kMaxDrafts + 1)));
  for (const auto& [batch, drafts] : options.draft_len_schedule) {
    NIBBLE_TRY(check("a batch size of draft_len_schedule", batch, int64_t{1}, kMany));
    NIBBLE_TRY(check("a length of draft_len_schedule", drafts, int64_t{0}, num_drafts));
  }
  return {};
}

void AcceptanceHistory::add(int64_t num_drafts, int64_t num_accepted) {
  for (int64_t i = 0; i < kMaxDrafts && i <= num_accepted; ++i) {
    double& stands = stands_[static_cast<size_t>(i)];
    if (i >= num_drafts) {
      stands += kCuriosity * (1 - stands);
      return;  // what lies behind was not reached either
    }
    stands += kAverageWeight * ((i < num_accepted ? 1 : 0) - stands);
  }
}

int64_t AcceptanceHistory::best_num_drafts(int64_t max_drafts, double draft_cost) const {
  int64_t best = std::min<int64_t>(1, max_drafts);
  double best_rate = 0;
  double all_stand = 1;
  double tokens = 1;
  for (int64_t n = 1; n <= std::min(max_drafts, kMaxDrafts); ++n) {
    all_stand *= stands_[static_cast<size_t>(n) - 1];
    tokens += all_stand;
    const double rate = tokens / (1 + draft_cost * static_cast<double>(n));
    if (rate > best_rate) {
      best_rate = rate;
      best = n;
    }
  }
  return best;
}

void DraftPolicy::add(int64_t num_accepted) {
  if (options_.acceptance_window == 0) return;
  window_.push_back(num_accepted);
  window_sum_ += num_accepted;
  if (static_cast<int64_t>(window_.size()) < options_.acceptance_window) return;
  const double length = 1 + static_cast<double>(window_sum_) / static_cast<double>(window_.size());
  if (length < options_.acceptance_length_threshold) off_ = true;
  window_sum_ -= window_.front();
  window_.pop_front();
}

int64_t DraftPolicy::num_drafts(const AcceptanceHistory& history, int64_t num_running) const {
  if (off_) return 0;
  if (options_.max_concurrency > 0 && num_running > options_.max_concurrency) return 0;
  int64_t limit = num_drafts_;
  const auto next = options_.draft_len_schedule.upper_bound(num_running);
  if (next != options_.draft_len_schedule.begin()) limit = std::prev(next)->second;
  return options_.adaptive ? history.best_num_drafts(limit, options_.draft_cost) : limit;
}

}  // namespace nibble
