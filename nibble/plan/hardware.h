// What a plan is made for: devices, memory beside them, and what this machine has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nibble/plan/catalogue.h"

namespace nibble {

// The system keeps this of a memory that it shares with the model: 4 GB and 5 %.
// Source: planner.md section 7.
int64_t system_reserve_bytes(int64_t memory_bytes);

struct DeviceGroup {
  PlanDevice device;
  int count = 1;
};

// Either `groups` holds GPUs, unified machines or one CPU machine, or `vram_bytes` says how much
// memory there is and nothing else about it.
struct Hardware {
  std::vector<DeviceGroup> groups;
  std::optional<int64_t> vram_bytes;
  std::optional<int64_t> ram_bytes;  // beside GPUs, for experts
  std::optional<PlanDevice> cpu;     // whose memory that is: gives its rate
  bool ssd = false;                  // experts may stay on the SSD
  std::optional<int64_t> ssd_bytes;  // free there; unknown means enough
  std::optional<double> ssd_rate;    // bytes a second
  bool is_local = false;

  int num_devices() const;
  // The least of every figure, so that a split in equal parts is right for all; `count` of the same
  // device are that device.
  PlanDevice weakest() const;
  bool is_mixed() const { return groups.size() > 1; }
};

// The devices of --gpu; a system's GPUs each count. Errors: those of device_of; conflict for
// several CPU machines, or one beside GPUs (whose memory --ram and --cpu describe).
PlanResult<Hardware> hardware_of(const std::vector<DeviceCount>& devices);

// Groups of "8x B200 SXM", for people.
std::string hardware_title(const Hardware& hardware);

// GPUs by the NVIDIA driver's own library (opened when it is there; none of it is needed to build),
// their memory as the driver reports it, other figures from the catalogue when a name fits; RAM
// from /proc/meminfo. Without a GPU the machine is its CPU and its RAM. `notes` gets what a person
// should know about the detection.
Hardware local_hardware(const Catalogue& catalogue, std::vector<std::string>* notes);

// Of the driver's "NVIDIA H200" the entry that is the same board: by words of the name and a memory
// size within 4 %. Nothing when none or several fit.
const DeviceSpec* match_driver_name(const Catalogue& catalogue, const std::string& driver_name,
                                    int64_t memory_bytes);

}  // namespace nibble
