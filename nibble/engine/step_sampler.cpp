#include "nibble/engine/step_sampler.h"

#include <numeric>
#include <utility>
#include <vector>

#include "nibble/base/check.h"

namespace nibble {
namespace {

using From = HiddenRow::From;

std::vector<RowRange> ranges_of(std::span<const StepSampler::Window> windows) {
  std::vector<RowRange> ranges;
  for (const StepSampler::Window& window : windows) ranges.push_back(window.rows);
  return ranges;
}

// The windows that one pass of the head takes.
std::span<const StepSampler::Window> first_part(std::span<const StepSampler::Window> windows) {
  int64_t rows = 0;
  size_t count = 0;
  while (count < windows.size() && rows + windows[count].rows.count <= ModelPasses::kLogitRows) {
    rows += windows[count++].rows.count;
  }
  NIBBLE_CHECK(count > 0);
  return windows.first(count);
}

}  // namespace

void StepSampler::sample_on_host(std::span<const Window> windows, size_t first,
                                 const WindowSink& sink) {
  passes_.logits(From::kStep, ranges_of(windows), [&](size_t i, const MatrixView& logits) {
    Sequence& sequence = *windows[i].sequence;
    sink(first + i, sequence.sampler.sample(sequence.drafts, logits, sampler_));
  });
}

void StepSampler::sample(std::span<const Window> windows, const WindowSink& sink) {
  if (!passes_.can_sample()) return sample_on_host(windows, 0, sink);
  for (size_t begin = 0; begin < windows.size();) {
    const auto part = first_part(windows.subspan(begin));
    sample_part(part, begin, sink);
    begin += part.size();
  }
}

void StepSampler::sample_part(std::span<const Window> windows, size_t first,
                              const WindowSink& sink) {
  rows_.clear();
  std::vector<int64_t> counts;  // of a window's rows on the device; 0: it is the host's
  for (const Window& window : windows) {
    Sequence& sequence = *window.sequence;
    counts.push_back(sequence.sampler.prepare(sequence.drafts, window.rows.first, rows_));
  }
  const std::span<const SampledRow> results = passes_.sample(From::kStep, rows_.rows);
  num_device_windows_ += static_cast<int64_t>(windows.size());
  // First what the device decided: asking for logits may void the rest.
  std::vector<std::optional<SequenceSampler::Window>> decided(windows.size());
  size_t at = 0;
  for (size_t i = 0; i < windows.size(); ++i) {
    const auto count = static_cast<size_t>(counts[i]);
    Sequence& sequence = *windows[i].sequence;
    if (count > 0) {
      decided[i] = sequence.sampler.finish(sequence.drafts, results.subspan(at, count));
    }
    at += count;
  }
  for (size_t i = 0; i < windows.size(); ++i) {
    if (decided[i]) {
      sink(first + i, *std::move(decided[i]));
    } else {
      ++num_host_windows_;
      bring_distributions(*windows[i].sequence);
      sample_on_host(windows.subspan(i, 1), first + i, sink);
    }
  }
}

// What the device drew drafts from, for the host to judge them.
void StepSampler::bring_distributions(Sequence& sequence) {
  Drafts& drafts = sequence.drafts;
  for (size_t i = 0; i < drafts.rows.size(); ++i) {
    if (drafts.rows[i] == nullptr) continue;
    drafts.distributions[i] =
        sequence.sampler.draft_distribution(passes_.kept_weights(*drafts.rows[i]));
    drafts.rows[i] = nullptr;
  }
}

void StepSampler::propose(std::span<const Window> windows, bool draw, const ProposalSink& sink) {
  std::vector<size_t> left;  // to the host
  if (passes_.can_sample()) {
    for (size_t begin = 0; begin < windows.size();) {
      const auto part = first_part(windows.subspan(begin));
      propose_part(part, begin, draw, sink, left);
      begin += part.size();
    }
  } else {
    left.resize(windows.size());
    std::iota(left.begin(), left.end(), size_t{0});
  }
  if (!left.empty()) propose_on_host(windows, left, draw, sink);
}

void StepSampler::propose_on_host(std::span<const Window> windows, std::span<const size_t> places,
                                  bool draw, const ProposalSink& sink) {
  std::vector<RowRange> ranges;
  for (const size_t place : places) ranges.push_back(windows[place].rows);
  passes_.logits(From::kMtp, ranges, [&](size_t i, const MatrixView& logits) {
    Sequence& sequence = *windows[places[i]].sequence;
    const std::span<float> row(logits.row<float>(0), static_cast<size_t>(logits.cols));
    sink(places[i], sequence.sampler.propose(row, draw, sampler_, sequence.drafts));
  });
}

// `windows` are those from `first` on; places that the device can't decide go to `left`.
void StepSampler::propose_part(std::span<const Window> windows, size_t first, bool draw,
                               const ProposalSink& sink, std::vector<size_t>& left) {
  struct Asked {
    size_t place = 0;  // in windows
    WeightRow weights;
  };
  rows_.clear();
  std::vector<Asked> asked;
  for (size_t i = 0; i < windows.size(); ++i) {
    Sequence& sequence = *windows[i].sequence;
    WeightRow weights;
    if (sequence.sampler.draws_drafts(draw)) {
      // A draft that the host will judge is drawn by it, too.
      if (!sequence.sampler.judged_on_host()) weights = weight_rows_.take();
      if (weights == nullptr) {
        ++num_host_drafts_;
        left.push_back(first + i);
        continue;
      }
    }
    if (sequence.sampler.prepare_proposal(sequence.drafts, windows[i].rows.first, weights, rows_)) {
      if (weights != nullptr) ++num_device_drafts_;
      asked.push_back({i, std::move(weights)});
    } else {
      sink(first + i, false);
    }
  }
  const std::span<const SampledRow> results = passes_.sample(From::kMtp, rows_.rows);
  for (size_t i = 0; i < asked.size(); ++i) {
    auto& [place, weights] = asked[i];
    const bool has_token = results[i].outcome == SampledRow::kToken;
    Drafts& drafts = windows[place].sequence->drafts;
    if (!has_token && weights != nullptr) {
      ++num_host_drafts_;
      left.push_back(first + place);
      continue;
    }
    if (weights != nullptr) {
      drafts.add(results[i].token, {}, std::move(weights));
    } else if (has_token) {
      drafts.token_ids.push_back(results[i].token);
    }
    sink(first + place, has_token);
  }
}

}  // namespace nibble
