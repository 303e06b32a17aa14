// How fast the host computes experts where they lie, and how fast they come to the device instead.
#pragma once

#include <span>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/kernels/host_mlp.h"
#include "nibble/offload/host_expert_rule.h"
#include "nibble/offload/routing_trace.h"
#include "nibble/offload/tiered_store.h"

namespace nibble {

// Measures with `experts` (at least one; as many as `ram` has slots at most), which are read into
// `ram` first and stay there like others: for about half a second. Caches don't answer when
// together they are larger. Errors: those of reads, naming the record; of
// Device::make_transfer_queue; kUnsupported for a device without one.
Result<HostExpertRates> measure_host_experts(TieredStore& ram, std::span<const HotExpert> experts,
                                             HostMlp& mlp, Device& device, int copy_streams);

}  // namespace nibble
