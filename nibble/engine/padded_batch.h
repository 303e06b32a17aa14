// A batch filled up to a size that is recorded.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/model/batch.h"

namespace nibble {

// Above, operations choose other ways that round differently: a pass of fewer tokens is never
// filled up beyond.
inline constexpr int64_t kMostFilledUp = 127;
// The same for the tokens of all ranks together, which meet in the MoE layers with attention data
// parallel.
inline constexpr int64_t kMostGatheredFilledUp = 255;

// The smallest of `sizes` (ascending) that holds the batch, when all of it are generated tokens
// (MlaForm::kAbsorbed); 0 when there is none.
int64_t recorded_size(const Batch& batch, std::span<const int64_t> sizes);

// Whether all of the batch are generated tokens.
bool is_generated(const Batch& batch);

// The same for the batches of all ranks, of generated tokens, which go in step with attention data
// parallel: rows[r] tokens on rank r. 0 also where a rank has none, and where more than half would
// be filled up.
int64_t recorded_size(std::span<const int64_t> rows, std::span<const int64_t> sizes);

// The batch with its last token repeated until there are `size`: its entry is written again with
// the same values, or (cuda) once. Reads the batch's block tables.
class PaddedBatch {
 public:
  PaddedBatch(const Batch& batch, int64_t size);

  // Views into this object. tokens_of_ranks is left empty.
  Batch batch() const;

 private:
  std::vector<int32_t> token_ids_;
  std::vector<AttentionSegment> segments_;
};

}  // namespace nibble
