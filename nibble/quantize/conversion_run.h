// Carries out a conversion plan in a folder that an earlier run may have begun.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"
#include "nibble/quantize/activations.h"
#include "nibble/quantize/conversion_journal.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/weight_algorithm.h"

namespace nibble {

// Prepares what the jobs of one layer need; done() follows when they are written.
class LayerCalibration {
 public:
  virtual ~LayerCalibration() = default;
  virtual const Activations& activations() const = 0;
  // with_rows: some of the layer's jobs will ask for input rows.
  virtual Status prepare(int layer, bool with_rows) = 0;
  // shards: the files that hold the layer, those that lack other layers under NAME.part.
  virtual Status done(int layer, std::span<const std::filesystem::path> shards) = 0;
};

struct ConversionRunOptions {
  WeightAlgorithm algorithm;
  int threads = 1;
  int64_t chunk_bytes = 1 << 20;
  bool show_progress = false;
  LayerCalibration* calibration = nullptr;  // null: none
};

struct ConversionRunResult {
  std::vector<std::string> shard_sha256;  // parallel to plan.shard_names
  uint64_t reused_bytes = 0;              // source bytes of jobs that were done already
};

// Writes all shards of the plan into `directory`. Jobs and shards that the journal lists are looked
// at first, and done again where they are not what it says. Errors: those of convert_job, of the
// files and of the calibration.
Result<ConversionRunResult> run_conversion(const CheckpointSource& source,
                                           const ConversionPlan& plan,
                                           const std::filesystem::path& directory,
                                           ConversionJournal& journal,
                                           const ConversionRunOptions& options);

}  // namespace nibble
