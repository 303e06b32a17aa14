// Brings experts' records into memory: from a packed file as they lie there, from a checkpoint
// folder, packed on the way, or from the host's memory into a device's (host_tier_loader.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/expert_store.h"
#include "nibble/offload/expert_format.h"
#include "nibble/offload/host_expert_rule.h"
#include "nibble/offload/record_reader.h"

namespace nibble {

// Thread-safe.
class ExpertLoader {
 public:
  using Done = RecordReader::Done;

  virtual ~ExpertLoader() = default;

  // Of the expert's record; 0 for one that does not exist.
  virtual uint64_t record_bytes(int layer, int expert) const = 0;

  // Begins to fill `destination`, record_bytes of it, at a multiple of 4096. start(), hurry() and
  // cancel() are RecordReader's.
  virtual uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                         Done done) = 0;
  virtual void hurry(uint64_t ticket) = 0;
  virtual bool cancel(uint64_t ticket) = 0;

  // Instead of start(), where nothing has to be read: the expert in `destination`, for work that is
  // given to the device after use(). Nothing when it has to be read.
  virtual std::optional<MlpWeight> start_at_hand(int /*layer*/, int /*expert*/,
                                                 std::span<std::byte> /*destination*/) {
    return std::nullopt;
  }

  // The expert in a record that start() filled. Errors: those of read_expert_record.
  virtual Result<MlpWeight> open(std::span<std::byte> record, int layer, int expert,
                                 const ExpertShape& shape, ActivationFormat activation) {
    return read_expert_record(record, layer, expert, shape, activation);
  }

  // Records that are on their way to a device may arrive behind start()'s end. Work given to the
  // device after use() finds them there; a record may be filled anew once the work that was given
  // to it before used() has run. By their first bytes; one after the other.
  virtual void use(std::span<const std::byte* const> /*records*/) {}
  virtual void used(std::span<const std::byte* const> /*records*/) {}

  // Of `missed` those that the host computes where they lie, leased there.
  virtual ExpertLease lease_for_host(int /*layer*/, std::span<const MissedExpert> /*missed*/) {
    return {};
  }
  // Whether there ever are any.
  virtual bool computes_on_host() const { return false; }

  virtual uint64_t bytes_read() const = 0;
  virtual double busy_seconds() const = 0;
  virtual std::string description() const = 0;
  // Of the tier that this reads from, where it is one.
  virtual ExpertStoreStats::Below below() const { return {}; }
};

// From a packed file. Errors: those of ExpertFile::open and RecordReader::open; kCorrupt for a file
// whose shapes are not the model's; kUnsupported for a layout that is not the backend's.
Result<std::unique_ptr<ExpertLoader>> make_packed_loader(const std::filesystem::path& path,
                                                         const ModelConfig& config,
                                                         const Kernels& kernels, bool with_mtp,
                                                         const ReaderOptions& options);

// From any checkpoint that Weights::load takes; `source` and `kernels` must outlive the loader.
// num_threads >= 1 read and pack. Errors: those of expert_record_bytes and expert_input_scales.
Result<std::unique_ptr<ExpertLoader>> make_checkpoint_loader(const CheckpointSource& source,
                                                             const ModelConfig& config,
                                                             Kernels& kernels, bool with_mtp,
                                                             int num_threads);

}  // namespace nibble
