// What the engine asks of the model: passes over a batch, rows of logits, hidden states kept.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/kernels/device_sampler.h"
#include "nibble/kernels/matrix_view.h"
#include "nibble/kernels/step_graphs.h"
#include "nibble/model/batch.h"

namespace nibble {

// A row of hidden states that a pass has left behind.
struct HiddenRow {
  enum class From : uint8_t {
    kStep,   // row `index` of the last forward()
    kMtp,    // row `index` of the last forward_mtp()
    kBlock,  // kept for cache block `index`
  };
  From from = From::kStep;
  int64_t index = 0;
};

// Neighbouring rows of the last pass of that kind.
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
};

// A row of the last forward() to keep for a cache block.
struct KeptRow {
  int64_t row = 0;
  int64_t block = 0;
};

// What a device that failed is thrown as.
class PassFailure : public std::runtime_error {
 public:
  explicit PassFailure(Error error) : std::runtime_error(error.message), error_(std::move(error)) {}
  const Error& error() const { return error_; }

 private:
  Error error_;
};

// One caller's view of a loaded model with its cache: on this process alone (LocalPasses), or on
// all ranks at once. The engine decides, whoever implements this executes; so all it needs comes in
// the arguments, and hidden states never leave the rank that made them.
//
// A device or a rank that fails throws std::runtime_error (PassFailure where it is known how):
// nothing can go on without it. A weight that can't be read is an Error: requests that don't need
// it can.
class ModelPasses {
 public:
  virtual ~ModelPasses() = default;

  // All layers over the batch. Its hidden states, after the final norm, are there until the next
  // forward(). Errors: those of the model's forward(); then there are none.
  [[nodiscard]] virtual Status forward(const Batch& batch) = 0;

  // Copies hidden states of the last forward() to where a later step finds them by their block.
  virtual void keep_hidden(std::span<const KeptRow> rows) = 0;

  // The MTP layer over the batch; `previous` names g_t for each of its tokens. Rows of the last
  // forward_mtp() are read before they are overwritten. Errors: as forward().
  [[nodiscard]] virtual Status forward_mtp(const Batch& batch,
                                           std::span<const HiddenRow> previous) = 0;

  // Calls sink(i, logits [rows[i].count, vocab_size]) for each i in turn: the head over rows[i] of
  // the last pass of that kind (kStep or kMtp). A range has 1..kLogitRows rows. The sink may change
  // the logits.
  using LogitsSink = std::function<void(size_t i, const MatrixView& logits)>;
  virtual void logits(HiddenRow::From from, std::span<const RowRange> rows,
                      const LogitsSink& sink) = 0;

  static constexpr int64_t kLogitRows = 64;  // of one pass of the head; a window has at most 9

  // Whether sample() may be called: where logits lie in memory that the host doesn't see.
  virtual bool can_sample() const { return false; }

  // Tokens of rows of the last pass of that kind: SampleRow::row counts its hidden states. No more
  // than kLogitRows different ones. The answers stay until the next call.
  virtual std::span<const SampledRow> sample(HiddenRow::From /*from*/,
                                             std::span<const SampleRow> /*rows*/) {
    return {};
  }

  // Drawn drafts' weights may be kept in so many rows (SampleRow::keep_weights).
  virtual int64_t num_weight_rows() const { return 0; }

  // The weights [vocab_size] of a row, for the host to judge a draft.
  virtual std::vector<float> kept_weights(int64_t /*row*/) { return {}; }

  // Of passes that were recorded and replayed.
  virtual StepGraphStats graph_stats() const { return {}; }
  virtual int64_t num_replayed() const { return 0; }
};

}  // namespace nibble
