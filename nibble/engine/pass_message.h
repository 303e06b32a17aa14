// A call of ModelPasses as bytes: the plan that rank 0 sends to the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/engine/model_passes.h"
#include "nibble/engine/pass_plan.h"
#include "nibble/model/batch.h"

namespace nibble {

enum class PassKind : uint8_t {
  kSetUp,  // an engine's caches and buffers
  kForward,
  kForwardMtp,
  kKeepHidden,
  kLogits,
  kSample,   // logits to tokens on each rank; in rounds alone
  kWeights,  // kept weights of a drawn draft; in rounds alone
  kRound,    // attention data parallel: for each rank its part of the same
  kHead,     // logits that stay on rank 0's device, to be sampled there
  kNothing,  // to be heard of, and to hear of a lost peer
  kStop,     // the engine ends
  kEnd,      // the model ends
};

// What all ranks do at once, with attention data parallel.
struct PassRound {
  struct Part {
    int64_t rows = 0;                // tokens of a pass
    int64_t answer_size = 0;         // bytes that come to rank 0
    std::vector<std::byte> message;  // empty: the rank lends its experts
  };
  PassKind kind = PassKind::kForward;  // of all messages
  // Passes are filled up to so many tokens on every rank and recorded; 0: they are run as they are.
  int64_t recorded_rows = 0;
  std::vector<Part> parts;  // by rank
};

// Sender and reader are the same build (the ranks compare versions when they meet), so what does
// not decode is a bug and aborts.
class PassMessage {
 public:
  static std::vector<std::byte> set_up(const PassPlan& plan);
  // A block table is sent up to the last slot that its segment reads or writes.
  static std::vector<std::byte> forward(const Batch& batch, int64_t block_size);
  static std::vector<std::byte> forward_mtp(const Batch& batch, std::span<const HiddenRow> previous,
                                            int64_t block_size);
  static std::vector<std::byte> keep_hidden(std::span<const KeptRow> rows);
  static std::vector<std::byte> logits(HiddenRow::From from, std::span<const RowRange> rows);
  static std::vector<std::byte> head(HiddenRow::From from, std::span<const int64_t> rows);
  static std::vector<std::byte> sample(HiddenRow::From from, std::span<const SampleRow> rows);
  static std::vector<std::byte> weights(int64_t row);
  static std::vector<std::byte> of_round(const PassRound& round);
  // kNothing, kStop, kEnd.
  static std::vector<std::byte> of_kind(PassKind kind);

  // Reads any of them.
  static PassMessage decode(std::span<const std::byte> bytes);

  PassKind kind = PassKind::kStop;
  std::vector<HiddenRow> previous;  // kForwardMtp
  std::vector<KeptRow> kept;        // kKeepHidden
  HiddenRow::From from{};           // kLogits, kHead, kSample
  std::vector<RowRange> rows;       // kLogits
  std::vector<int64_t> head_rows;   // kHead
  int64_t weight_row = 0;           // kWeights
  PassPlan plan;                    // kSetUp
  PassRound round;                  // kRound
  // kForward, kForwardMtp: views into this message.
  Batch batch() const;
  // kSample: views into this message.
  std::vector<SampleRow> samples() const;

 private:
  struct Sample {
    SampleRow row;  // its spans are empty, and lie in the vectors
    std::vector<TokenBias> bias;
    std::vector<uint64_t> allowed;
    std::vector<int32_t> forbidden;
    std::vector<TokenSeen> seen;
  };
  std::vector<Sample> samples_;
  std::vector<int32_t> token_ids_;
  std::vector<AttentionSegment> segments_;  // block_table: null, they follow one another in tables_
  std::vector<int64_t> table_sizes_;
  std::vector<int32_t> tables_;
  mutable std::vector<AttentionSegment> placed_;  // segments_ with their block tables
};

}  // namespace nibble
