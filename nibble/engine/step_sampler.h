// A step's logits to tokens: on the device where it can, else here. The tokens are the same.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/model_passes.h"
#include "nibble/engine/sampler.h"
#include "nibble/engine/sequence.h"
#include "nibble/engine/weight_rows.h"

namespace nibble {

class StepSampler {
 public:
  explicit StepSampler(ModelPasses& passes)
      : passes_(passes), weight_rows_(passes.num_weight_rows()) {}

  // Rows of a pass's hidden states that stand behind 0, 1, ... drafts of a sequence.
  struct Window {
    Sequence* sequence = nullptr;
    RowRange rows;
  };
  // Calls sink(i, ...) for each window of the last forward() in turn.
  using WindowSink = std::function<void(size_t, Result<SequenceSampler::Window>)>;
  void sample(std::span<const Window> windows, const WindowSink& sink);

  // Appends a draft to each window's sequence from its one row of the last forward_mtp(): what
  // SequenceSampler::propose() does, with `draw`. Calls sink(i, whether there is one) for each
  // window, in any order.
  using ProposalSink = std::function<void(size_t, bool)>;
  void propose(std::span<const Window> windows, bool draw, const ProposalSink& sink);

  // Windows that the device was given, and those of them that it left to the host.
  int64_t num_device_windows() const { return num_device_windows_; }
  int64_t num_host_windows() const { return num_host_windows_; }
  // Drafts that the device was to draw, and those that the host drew: undecided ones among them.
  int64_t num_device_drafts() const { return num_device_drafts_; }
  int64_t num_host_drafts() const { return num_host_drafts_; }

 private:
  void sample_part(std::span<const Window> windows, size_t first, const WindowSink& sink);
  void sample_on_host(std::span<const Window> windows, size_t first, const WindowSink& sink);
  void propose_part(std::span<const Window> windows, size_t first, bool draw,
                    const ProposalSink& sink, std::vector<size_t>& left);
  void propose_on_host(std::span<const Window> windows, std::span<const size_t> places, bool draw,
                       const ProposalSink& sink);
  void bring_distributions(Sequence& sequence);

  ModelPasses& passes_;
  WeightRows weight_rows_;
  Sampler sampler_;
  SampleRows rows_;
  int64_t num_device_windows_ = 0;
  int64_t num_host_windows_ = 0;
  int64_t num_device_drafts_ = 0;
  int64_t num_host_drafts_ = 0;
};

}  // namespace nibble
