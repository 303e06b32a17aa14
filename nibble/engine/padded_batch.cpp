#include "nibble/engine/padded_batch.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>

#include "nibble/base/check.h"
#include "nibble/engine/local_passes.h"

namespace nibble {

std::vector<int64_t> step_graph_sizes(std::span<const int64_t> batch_sizes, int64_t max_batch_size,
                                      int64_t num_drafts) {
  std::set<int64_t> sizes;
  for (const int64_t size : batch_sizes) {
    sizes.insert(size);
    sizes.insert(size * (1 + num_drafts));
  }
  if (batch_sizes.empty()) {
    for (int64_t size = 1; size < kMostFilledUp;) {
      sizes.insert(size);
      size += size < 8 ? 1 : size < 16 ? 2 : size < 64 ? 4 : 8;
    }
    sizes.insert(kMostFilledUp);
    // The first size that holds a full step is the last one that is needed.
    const auto enough = sizes.lower_bound(max_batch_size * (1 + num_drafts));
    if (enough != sizes.end()) sizes.erase(std::next(enough), sizes.end());
  }
  return {sizes.begin(), sizes.end()};
}

bool is_generated(const Batch& batch) {
  const auto& segments = batch.attention.segments;
  return std::all_of(segments.begin(), segments.end(), [](const AttentionSegment& segment) {
    return segment.form == MlaForm::kAbsorbed;
  });
}

int64_t recorded_size(const Batch& batch, std::span<const int64_t> sizes) {
  const int64_t rows = batch.num_tokens();
  return is_generated(batch) ? recorded_size(std::span(&rows, 1), sizes) : 0;
}

int64_t recorded_size(std::span<const int64_t> rows, std::span<const int64_t> sizes) {
  const auto [least, most] = std::minmax_element(rows.begin(), rows.end());
  if (*least == 0) return 0;
  const auto size = std::lower_bound(sizes.begin(), sizes.end(), *most);
  if (size == sizes.end()) return 0;
  const int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  const int64_t filled_up = *size * static_cast<int64_t>(rows.size());
  const bool rounds_otherwise =
      (*least <= kMostFilledUp && *size > kMostFilledUp) ||
      (rows.size() > 1 && all <= kMostGatheredFilledUp && filled_up > kMostGatheredFilledUp);
  return rounds_otherwise || (rows.size() > 1 && filled_up > 2 * all) ? 0 : *size;
}

PaddedBatch::PaddedBatch(const Batch& batch, int64_t size)
    : token_ids_(batch.token_ids.begin(), batch.token_ids.end()),
      segments_(batch.attention.segments.begin(), batch.attention.segments.end()) {
  NIBBLE_CHECK(!segments_.empty() && size >= batch.num_tokens());
  AttentionSegment copy = segments_.back();
  copy.first_position += copy.num_tokens - 1;
  copy.num_tokens = 1;
  while (static_cast<int64_t>(token_ids_.size()) < size) {
    copy.first_token = static_cast<int64_t>(token_ids_.size());
    segments_.push_back(copy);
    token_ids_.push_back(token_ids_.back());
  }
}

Batch PaddedBatch::batch() const {
  return {token_ids_, AttentionBatch{static_cast<int64_t>(token_ids_.size()), segments_}};
}

}  // namespace nibble
