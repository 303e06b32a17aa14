// Copies from host memory into a device's that run beside the device's own work, and the order
// between the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/base/result.h"

namespace nibble {

// Copies begin in the order in which they are given. Marks and tickets count from 1; a function
// that is given an old one may wait for a later one instead. Thread-safe. The device must outlive
// it, and memory that a copy uses must outlive the copy.
class TransferQueue {
 public:
  virtual ~TransferQueue() = default;  // waits for all copies

  // A point in the device's own work: everything that was given to it until now.
  virtual uint64_t mark() = 0;

  // Begins to copy `source` (page-locked, or the call waits) to `destination` in device memory once
  // the device's work up to the mark `after` has run; 0: at once. Returns the copy's ticket.
  virtual uint64_t copy(std::byte* destination, std::span<const std::byte> source,
                        uint64_t after) = 0;

  // Work given to the device from now on begins behind the copy.
  virtual void hold_device_until(uint64_t ticket) = 0;

  // The host waits until the copy is done. Errors: kUnavailable with the device's words for any
  // copy that failed so far.
  virtual Status wait(uint64_t ticket) = 0;
};

}  // namespace nibble
