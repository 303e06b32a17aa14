// Writes a packed expert file from a checkpoint, record by record, and can be interrupted.
#pragma once

#include <cstdint>
#include <filesystem>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

struct PackExpertsOptions {
  int threads = 1;  // that pack in parallel; each needs memory for one record
  bool show_progress = false;
  uint64_t source_fingerprint = 0;  // what tells this checkpoint from another of the same shapes
};

struct PackExpertsReport {
  int64_t num_records = 0;
  int64_t num_reused = 0;  // found whole from an earlier run
  uint64_t file_bytes = 0;
  double seconds = 0;
};

// All routed experts of all layers, the MTP layer's included. The file grows as PATH.part and is
// renamed when it is complete. A PATH.part of the same checkpoint, layout and shapes is gone on
// with: records whose checksum is right are kept.
// Errors: those of pack_expert, naming the tensor; of the file system, naming the file;
// kUnavailable before anything is packed when the disk is too full; kCancelled after an interrupt.
Result<PackExpertsReport> pack_experts(const CheckpointSource& source, const ModelConfig& config,
                                       Kernels& kernels, const std::filesystem::path& path,
                                       const PackExpertsOptions& options);

}  // namespace nibble
