// How long a conversion will take, before it begins.
#pragma once

#include "nibble/checkpoint/config.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/quantize.h"

namespace nibble {

// Seconds on this machine: short trials of the algorithm's encoder and, with samples, of sums of
// products give rates; the plan and the samples say how much there is to do. The disk is not asked.
// Memory traffic and small matrices are not considered: within a factor of two of what the
// processor then takes.
double expected_seconds(const ConversionPlan& plan, const ModelConfig& config,
                        const QuantizeOptions& options, int threads);

}  // namespace nibble
