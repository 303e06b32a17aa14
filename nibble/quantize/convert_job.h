// Does one job of a conversion: reads its source tensors, writes its outputs.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/base/thread_pool.h"
#include "nibble/checkpoint/source.h"
#include "nibble/quantize/activations.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/shard_file.h"
#include "nibble/quantize/weight_algorithm.h"

namespace nibble {

// The outputs of one job on their way into a shard: each tensor's bytes come in order, and are
// hashed as they pass.
class JobOutput {
 public:
  JobOutput(ShardFile& shard, const ConversionJob& job);
  ~JobOutput();
  JobOutput(const JobOutput&) = delete;
  JobOutput& operator=(const JobOutput&) = delete;

  // Appends to the tensor, which is one of the job's.
  Status append(std::string_view tensor, std::span<const std::byte> bytes);

  // XXH3 over all outputs, once they are complete.
  std::string hash() const;

  // The same of what lies in the shard, for a later run to compare. Errors: those of read.
  static Result<std::string> stored_hash(const ShardFile& shard, const ConversionJob& job);

 private:
  struct Tensor;
  ShardFile& shard_;
  std::vector<Tensor> tensors_;
};

struct ConversionContext {
  const CheckpointSource& source;
  WeightAlgorithm algorithm;
  const Activations* activations;  // null: input_scale is 1
  int64_t chunk_bytes;             // that one thread holds of a matrix, about
  const std::atomic<bool>& stop;
  ThreadPool* pool;  // for algorithms that need activations; null otherwise
};

// FP8 values are rounded to BF16 first, and a group's amax is that of the rounded values. Without a
// need for activations a matrix is worked on some rows at a time, so that none has to fit into
// memory, and jobs may run in several threads. Otherwise the whole matrix and its Hessian are held.
//
// Errors: those of read_linear, of the number formats (NaN, infinity) and of the shard, with the
// tensor's name; kCancelled soon after an interrupt or after `stop` was set.
Status convert_job(const ConversionContext& context, const ConversionJob& job, JobOutput* output);

// Bytes that a job of an algorithm that needs activations holds at once.
uint64_t data_driven_bytes(const LinearSpec& linear, const WeightAlgorithm& algorithm);

}  // namespace nibble
