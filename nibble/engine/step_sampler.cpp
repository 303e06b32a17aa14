#include "nibble/engine/step_sampler.h"

#include <algorithm>
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
      sample_on_host(windows.subspan(i, 1), first + i, sink);
    }
  }
}

void StepSampler::propose(std::span<const Window> windows, bool draw, const ProposalSink& sink) {
  const bool any_drawn = std::any_of(windows.begin(), windows.end(), [&](const Window& window) {
    return window.sequence->sampler.draws_drafts(draw);
  });
  if (!passes_.can_sample() || any_drawn) {
    passes_.logits(From::kMtp, ranges_of(windows), [&](size_t i, const MatrixView& logits) {
      Sequence& sequence = *windows[i].sequence;
      const std::span<float> row(logits.row<float>(0), static_cast<size_t>(logits.cols));
      sink(i, sequence.sampler.propose(row, draw, sampler_, sequence.drafts));
    });
    return;
  }
  for (size_t begin = 0; begin < windows.size();) {
    const auto part = first_part(windows.subspan(begin));
    rows_.clear();
    std::vector<bool> asked;
    for (const Window& window : part) {
      Sequence& sequence = *window.sequence;
      asked.push_back(sequence.sampler.prepare_proposal(sequence.drafts, window.rows.first, rows_));
    }
    const std::span<const SampledRow> results = passes_.sample(From::kMtp, rows_.rows);
    size_t next = 0;
    for (size_t i = 0; i < part.size(); ++i) {
      bool has_token = false;
      if (asked[i]) {
        const SampledRow& sampled = results[next++];
        has_token = sampled.outcome == SampledRow::kToken;
        if (has_token) part[i].sequence->drafts.token_ids.push_back(sampled.token);
      }
      sink(begin + i, has_token);
    }
    begin += part.size();
  }
}

}  // namespace nibble
