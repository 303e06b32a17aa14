// The device catalogue: what a GPU, a machine or a CPU socket has, by name. gpus.csv is compiled
// in; a user may bring another file or describe a device on the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/plan/plan_error.h"

namespace nibble {

// One line. Figures are for the whole entry: a system holds `devices` GPUs, a CPU entry `devices`
// sockets; link_bidir_gbs alone is per GPU. What is not known is absent, never 0.
struct DeviceSpec {
  std::string id;
  std::string name;
  std::string vendor;
  std::string device_class;  // consumer, workstation, datacenter, system, unified, cpu
  int devices = 1;
  std::optional<double> memory_gb;             // as the vendor says it
  std::optional<int64_t> memory_mib_reported;  // as its driver says it
  std::optional<double> mem_bw_gbs;            // 1e9 bytes a second
  std::optional<double> bf16_dense_tflops;
  std::optional<double> fp8_dense_tflops;
  std::optional<double> fp4_dense_tflops;
  std::string compute_capability;
  bool native_fp4 = false;
  std::string fp4_formats;  // "nvfp4,mxfp4"
  std::string link;
  std::optional<double> link_bidir_gbs;  // both directions, for one GPU
  bool unified = false;
  std::optional<double> tdp_w;
  std::string source;
  std::string checked;     // which figures were compared with a published page; "no" = none
  std::string confidence;  // high, medium, low, computed
  std::string note;

  // Whether some figure was compared with a published page or computed from its parts.
  bool is_checked() const { return !checked.empty() && checked != "no"; }
  // Whether it multiplies NVFP4 (not another 4-bit block format) in hardware.
  bool has_nvfp4() const;
};

enum class BytesSource { kDriver, kReported, kNominal, kUser };
std::string_view bytes_source_name(BytesSource source);

// One GPU (or one CPU machine) of an entry, in bytes and per second: what the formulas take.
struct PlanDevice {
  std::string id;
  std::string name;
  std::string device_class;
  std::string vendor;
  int64_t memory_bytes = 0;
  BytesSource bytes_source = BytesSource::kNominal;
  std::optional<double> bandwidth;   // bytes a second
  std::optional<double> bf16_flops;  // a second, dense
  std::optional<double> fp8_flops;
  std::optional<double> fp4_flops;  // absent when it has no NVFP4
  std::string link;
  std::optional<double> link_bidir;  // bytes a second
  std::string compute_capability;
  std::optional<double> tdp_w;
  bool checked = false;
  std::string checked_figures;
  std::string note;
  int sockets = 1;        // of a CPU entry
  int gpus_per_node = 8;  // how many GPUs share the fast link

  bool is_cpu() const { return device_class == "cpu"; }
  bool is_unified() const { return device_class == "unified"; }
};

// One GPU of an entry. Errors: bad_value when the entry has no memory figure.
PlanResult<PlanDevice> device_of(const DeviceSpec& spec);

class Catalogue {
 public:
  // The one compiled in, 98 entries.
  static const Catalogue& builtin();

  // The text of a CSV file with the columns of gpus.csv, in any order, id and memory_gb required.
  // Errors: bad_file naming `where`, the line and the column: a wrong number of columns, a figure
  // that is no positive number, a duplicate id, an unknown column.
  static PlanResult<Catalogue> parse(std::string_view csv, std::string_view where);

  std::span<const DeviceSpec> devices() const { return devices_; }

  // The entry of that id, or of a prefix that only one id has. Case, '_', ' ' and '-' are ignored.
  // Errors: unknown_device with the nearest ids, or with those that the prefix fits.
  PlanResult<DeviceSpec> find(std::string_view name) const;

  // Entries of `other` are added, replacing those of the same id.
  void merge(const Catalogue& other);

 private:
  std::vector<DeviceSpec> devices_;
};

// What --gpu says: an entry and how many of it.
struct DeviceCount {
  DeviceSpec spec;
  int count = 1;
};

// "h200-sxmx4", "4xh200-sxm", "h200-sxm:4", "h200-sxm"; or
// "custom:mem=96GiB,bw=1792,bf16=503,fp8=1007,fp4=2015,link=128" with an optional xN behind it
// (bw and link in GB/s, the rest TFLOP/s, watts=W). Errors: unknown_device, bad_value for a count
// that is not in [1, 4096] or a malformed custom entry.
PlanResult<DeviceCount> parse_device_count(std::string_view text, const Catalogue& catalogue);

// "96", "96GB", "96GiB", "1.5TB" in bytes; a number alone is GB (1e9). Nothing for anything else,
// zero, negative or above 1e15.
std::optional<int64_t> parse_size(std::string_view text);

// A whole text as a finite number, or nothing.
std::optional<double> parse_number(std::string_view text);

}  // namespace nibble
