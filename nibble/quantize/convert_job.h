// Does one job of a conversion: reads its source tensors, writes its outputs.
#pragma once

#include <atomic>

#include "nibble/base/result.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/checkpoint/source.h"
#include "nibble/quantize/conversion_plan.h"

namespace nibble {

// FP8 values are rounded to BF16 first, and a group's amax is that of the rounded values;
// input_scale is 1, which means that nothing was calibrated. Holds the output of one matrix at a
// time, not its input. Safe to call from several threads for different jobs of one writer.
//
// Errors: those of read_linear, of the number formats (NaN, infinity) and of the writer, with the
// tensor's name; kCancelled soon after an interrupt or after `stop` was set.
Status convert_job(const CheckpointSource& source, const ConversionJob& job,
                   const std::atomic<bool>& stop, SafetensorsWriter* writer);

}  // namespace nibble
