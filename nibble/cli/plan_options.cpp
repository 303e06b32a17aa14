#include "nibble/cli/plan_options.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

PlanResult<Catalogue> read_catalogue(const std::string& path) {
  const auto text = read_text_file(path, uint64_t{16} << 20);
  if (!text) return plan_error("bad_file", text.error());
  return Catalogue::parse(*text, path);
}

PlanResult<int64_t> size_option(std::string_view option, const std::string& text) {
  if (const auto bytes = parse_size(text)) return *bytes;
  return plan_error(
      "bad_value",
      fmt::format("{} is '{}', expected a size such as 512 (GB) or 480GiB", option, text));
}

// "7" is GB a second; "7GB/s" too; anything else is a folder whose free space counts.
PlanStatus set_ssd(const std::string& text, Hardware& hardware) {
  hardware.ssd = true;
  std::string rate = text;
  if (rate.ends_with("GB/s")) rate.resize(rate.size() - 4);
  if (const auto number = parse_number(rate)) {
    if (*number <= 0 || *number > 1e4) {
      return plan_error("bad_value", fmt::format("--ssd is {}, expected a folder or GB/s", text));
    }
    hardware.ssd_rate = *number * 1e9;
    return {};
  }
  if (text == "yes") return {};
  std::error_code error;
  const auto space = std::filesystem::space(text, error);
  if (error) {
    return plan_error("bad_value", fmt::format("--ssd {}: {}; expected a folder or a rate in GB/s",
                                               text, error.message()));
  }
  hardware.ssd_bytes = static_cast<int64_t>(space.available);
  return {};
}

PlanStatus add_beside(const PlanOptions& options, const Catalogue& catalogue, Hardware& hardware) {
  if (!options.cpu.empty()) {
    const DeviceSpec spec = NIBBLE_TRY(catalogue.find(options.cpu));
    if (spec.device_class != "cpu") {
      return plan_error("bad_value", fmt::format("--cpu {}: {} is no CPU", options.cpu, spec.name),
                        "--gpu list shows the entries of class cpu");
    }
    hardware.cpu = NIBBLE_TRY(device_of(spec));
    hardware.ram_bytes = hardware.cpu->memory_bytes;
  }
  if (!options.ram.empty()) hardware.ram_bytes = NIBBLE_TRY(size_option("--ram", options.ram));
  if (!options.ssd.empty()) NIBBLE_TRY(set_ssd(options.ssd, hardware));
  return {};
}

}  // namespace

PlanResult<Catalogue> plan_catalogue(const PlanOptions& options) {
  Catalogue catalogue = Catalogue::builtin();
  if (!options.gpus_csv.empty()) catalogue = NIBBLE_TRY(read_catalogue(options.gpus_csv));
  if (!options.gpu_file.empty()) {
    const Catalogue more = NIBBLE_TRY(read_catalogue(options.gpu_file));
    catalogue.merge(more);
  }
  return catalogue;
}

PlanResult<Hardware> plan_beside(const PlanOptions& options, const Catalogue& catalogue) {
  Hardware hardware;
  NIBBLE_TRY(add_beside(options, catalogue, hardware));
  return hardware;
}

PlanResult<Hardware> plan_hardware(const PlanOptions& options, const Catalogue& catalogue,
                                   std::vector<std::string>* notes) {
  if (!options.gpus.empty() && !options.vram.empty()) {
    return plan_error("conflict",
                      "--gpu and --vram contradict each other: give the devices or "
                      "their memory, not both");
  }
  Hardware hardware;
  if (!options.vram.empty()) {
    hardware.vram_bytes = NIBBLE_TRY(size_option("--vram", options.vram));
  } else if (!options.gpus.empty()) {
    std::vector<DeviceCount> devices;
    for (const std::string& text : options.gpus) {
      devices.push_back(NIBBLE_TRY(parse_device_count(text, catalogue)));
    }
    hardware = NIBBLE_TRY(hardware_of(devices));
  } else if (!options.cpu.empty() || !options.ram.empty()) {
    // A machine without GPUs: its CPU, its RAM.
    Hardware beside = NIBBLE_TRY(plan_beside(options, catalogue));
    PlanDevice cpu;
    if (beside.cpu) {
      cpu = *beside.cpu;
    } else {
      cpu.id = "local";
      cpu.name = "a CPU";
      cpu.device_class = "cpu";
    }
    if (!options.ram.empty()) {
      cpu.memory_bytes = *beside.ram_bytes;
      cpu.bytes_source = BytesSource::kUser;
    }
    beside.ram_bytes.reset();
    beside.cpu.reset();
    beside.groups.push_back({std::move(cpu), 1});
    return beside;
  } else {
    hardware = local_hardware(catalogue, notes);
  }
  const bool own_memory = !hardware.groups.empty() && (hardware.groups.front().device.is_cpu() ||
                                                       hardware.groups.front().device.is_unified());
  if (own_memory && !hardware.is_local && (!options.ram.empty() || !options.cpu.empty())) {
    return plan_error("conflict", fmt::format("{} has its memory in its catalogue entry: --ram and "
                                              "--cpu go with GPUs",
                                              hardware.groups.front().device.name));
  }
  NIBBLE_TRY(add_beside(options, catalogue, hardware));
  return hardware;
}

PlanResult<PlanRequest> plan_request(const PlanOptions& options, const PlanModel& model) {
  PlanRequest request;
  if (options.kv != "auto") {
    request.kv = parse_kv_format(options.kv);
    if (!request.kv) {
      return plan_error(
          "bad_value", fmt::format("--kv is '{}', expected auto, bf16, fp8 or fp8-ds", options.kv));
    }
  }
  if (options.context == "max") {
    request.context = model.config.max_position_embeddings;
  } else {
    const auto number = parse_number(options.context);
    if (!number || *number < 1 || *number != std::floor(*number) || *number > 9e15) {
      return plan_error("bad_value", fmt::format("--context is '{}', expected a number of tokens "
                                                 "from 1, or max",
                                                 options.context));
    }
    request.context = static_cast<int64_t>(*number);
    // The default must not be too long for a small model.
    if (options.context == "32768") {
      request.context = std::min(request.context, model.config.max_position_embeddings);
    }
  }
  request.batch = options.batch.value_or(1);
  request.isl = options.isl.value_or(0);
  request.osl = options.osl.value_or(0);
  if (options.mtp) {
    if (*options.mtp < 0 || *options.mtp > 5) {
      return plan_error("bad_value", fmt::format("--mtp is {}, expected 0 to 5", *options.mtp));
    }
    request.draft_tokens = static_cast<int>(*options.mtp);
  }
  request.accept_length = options.accept;
  if (options.parallel == "tp") {
    request.parallel = ParallelMode::kTp;
  } else if (options.parallel == "adp") {
    request.parallel = ParallelMode::kAdp;
  } else if (options.parallel == "layer") {
    request.parallel = ParallelMode::kLayer;
  } else if (options.parallel != "auto") {
    return plan_error(
        "bad_value",
        fmt::format("--parallel is '{}', expected auto, tp, adp or layer", options.parallel));
  }
  request.tp = options.tp;
  request.ep = options.ep;
  request.pp = options.pp;
  request.kv_fraction = options.kv_fraction.value_or(0.9);
  request.max_num_tokens = options.max_num_tokens;
  request.max_batch = options.max_batch;
  request.graphs = !options.no_graphs;
  request.numa_aware = options.numa_aware;
  if (options.skew && !(*options.skew >= 0 && *options.skew <= 10)) {
    return plan_error("bad_value", fmt::format("--skew is {}, expected 0 to 10", *options.skew));
  }
  request.skew = options.skew;
  if (options.node_link) {
    if (!(*options.node_link > 0 && *options.node_link < 1e5)) {
      return plan_error(
          "bad_value", fmt::format("--node-link is {}, expected GB/s above 0", *options.node_link));
    }
    request.node_link_rate = *options.node_link * 1e9;
  }
  if (options.host_link) {
    if (!(*options.host_link > 0 && *options.host_link < 1e5)) {
      return plan_error(
          "bad_value", fmt::format("--host-link is {}, expected GB/s above 0", *options.host_link));
    }
    request.host_link_rate = *options.host_link * 1e9;
  }
  if (!options.net.empty()) {
    const auto rate = parse_number(options.net);
    if (!rate || *rate <= 0 || *rate > 1e9) {
      return plan_error("bad_value",
                        fmt::format("--net is '{}', expected Mbit/s above 0", options.net));
    }
    request.net_rate = *rate * 1e6 / 8;
  }
  return request;
}

CapacityRequest capacity_request(const PlanOptions& options) {
  CapacityRequest request;
  request.requests_per_second = options.capacity.value_or(0);
  request.max_tpot_ms = options.max_tpot.value_or(request.max_tpot_ms);
  request.max_ttft_ms = options.max_ttft.value_or(request.max_ttft_ms);
  request.prefix_share = options.prefix_share.value_or(request.prefix_share);
  request.load = options.load.value_or(request.load);
  return request;
}

PlanResult<std::map<std::string, double>> plan_prices(const PlanOptions& options,
                                                      const Catalogue& catalogue) {
  std::map<std::string, double> prices;
  for (const std::string& text : options.prices) {
    const size_t equals = text.find('=');
    const bool named = equals != std::string::npos;
    const auto price = parse_number(named ? text.substr(equals + 1) : text);
    if (!price || *price <= 0 || *price > 1e9) {
      return plan_error("bad_value", fmt::format("--price is '{}', expected X or ID=X with a price "
                                                 "of one device for an hour above 0",
                                                 text));
    }
    // "" is the price of whatever --gpu names.
    std::string id;
    if (named) {
      const DeviceSpec spec = NIBBLE_TRY(catalogue.find(text.substr(0, equals)));
      id = spec.id;
    }
    prices[id] = *price;
  }
  return prices;
}

}  // namespace nibble
