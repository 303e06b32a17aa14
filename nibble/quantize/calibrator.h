// Runs the unquantized model over samples, one layer at a time, and keeps what its linear layers
// read: largest magnitudes, and for algorithms that want them the inputs themselves, on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/quantize/conversion_run.h"

namespace nibble {

struct CalibratorOptions {
  std::span<const std::vector<int32_t>> samples;  // token ids; each is a sequence of its own
  std::filesystem::path folder;                   // for files; made if need be
  std::string backend = "auto";
  int threads = 1;
  int64_t batch_tokens = 2048;  // of one forward pass, at least the longest sample
  bool show_progress = false;

  // Each layer's inputs are those that the quantized layers before it give (weights alone are
  // quantized), as published GPTQ has it; otherwise those of the unquantized model.
  bool feed_quantized = false;
};

// Hidden states between two layers lie in folder/hidden-K.bin, F32 [tokens, hidden_size], so that
// nothing is lost and the statistics are those of a run of the whole model, bit for bit. Each layer
// is fed what the unquantized model computes. Memory: one layer, and the activations of one batch.
class Calibrator final : public LayerCalibration, public Activations {
 public:
  // Errors: those of make_kernels; kOutOfMemory.
  static Result<std::unique_ptr<Calibrator>> create(const CheckpointSource& source,
                                                    const ModelConfig& config,
                                                    const CalibratorOptions& options);
  ~Calibrator() override;

  // LayerCalibration. A layer whose statistics an earlier run has left is not run again unless rows
  // are asked for. Errors: those of Weights::load and of files; kInvalidArgument naming the module
  // when an input is not finite.
  const Activations& activations() const override { return *this; }
  Status prepare(int layer, bool with_rows) override;
  Status done(int layer, std::span<const std::filesystem::path> shards) override;

  // Activations.
  std::optional<float> input_amax(std::string_view module) const override;
  int64_t num_rows(std::string_view module) const override;
  Status read_rows(std::string_view module, int64_t first, int64_t count,
                   float* out) const override;

 private:
  struct State;
  explicit Calibrator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Bytes that a layer of the source takes in memory, the largest one; of the activations for each
// token of a batch; and on the disk for this many tokens.
uint64_t calibration_layer_bytes(const ModelConfig& config, bool source_is_fp8);
uint64_t calibration_row_bytes(const ModelConfig& config);
uint64_t calibration_disk_bytes(const ModelConfig& config, int64_t tokens, bool with_rows);

// Errors: kInvalidArgument for an empty sample, a token outside the vocabulary, a sample longer
// than the model's context.
Status check_samples(std::span<const std::vector<int32_t>> samples, const ModelConfig& config);

}  // namespace nibble
