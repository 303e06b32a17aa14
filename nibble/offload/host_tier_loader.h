// The way of experts from the host's memory to a device's: what the tier in device memory loads
// from.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/tiered_store.h"

namespace nibble {

// Fetches experts from `ram`, whose slots should be page-locked (page_locked_slots), and copies
// them to destinations in the device's memory on copy_streams (1 or 2) streams of their own. What
// is wanted now goes before guesses; those are begun one at a time, while no copy is under way. A
// record stays in `ram` until its copy is done. `device`, which has transfer queues, must outlive
// the loader. `host_experts` says which experts the host computes where they lie in `ram`, by
// `rates`. Errors: those of Device::make_transfer_queue.
Result<std::unique_ptr<ExpertLoader>> make_host_tier_loader(
    std::unique_ptr<TieredStore> ram, Device& device, int copy_streams,
    HostExperts host_experts = HostExperts::kOff, const HostExpertRates& rates = {});

}  // namespace nibble
