#include "nibble/plan/hardware.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <fstream>
#include <numeric>
#include <sstream>

#include "nibble/base/check.h"

namespace nibble {
namespace {

struct DriverGpu {
  std::string name;
  int64_t memory_bytes = 0;
};

// The four functions of libnvidia-ml.so.1 that are needed, declared here so that its header isn't.
// Source: NVIDIA's NVML API reference; the ABI of these has been stable since 2013.
class DriverLibrary {
 public:
  DriverLibrary() : library_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    load("nvmlInit_v2", init_);
    load("nvmlShutdown", shutdown_);
    load("nvmlDeviceGetCount_v2", count_);
    load("nvmlDeviceGetHandleByIndex_v2", handle_);
    load("nvmlDeviceGetName", name_);
    load("nvmlDeviceGetMemoryInfo", memory_);
  }
  ~DriverLibrary() {
    if (library_ != nullptr) (void)::dlclose(library_);
  }
  DriverLibrary(const DriverLibrary&) = delete;
  DriverLibrary& operator=(const DriverLibrary&) = delete;

  std::vector<DriverGpu> gpus() const {
    std::vector<DriverGpu> found;
    if (init_ == nullptr || shutdown_ == nullptr || count_ == nullptr || handle_ == nullptr ||
        name_ == nullptr || memory_ == nullptr || init_() != 0) {
      return found;
    }
    unsigned int count = 0;
    if (count_(&count) == 0) {
      for (unsigned int i = 0; i < count; ++i) {
        void* device = nullptr;
        std::array<char, 96> name{};
        Memory memory{};
        if (handle_(i, &device) != 0 || memory_(device, &memory) != 0) continue;
        if (name_(device, name.data(), static_cast<unsigned int>(name.size() - 1)) != 0) continue;
        found.push_back({name.data(), static_cast<int64_t>(memory.total)});
      }
    }
    (void)shutdown_();
    return found;
  }

 private:
  struct Memory {
    unsigned long long total, free, used;
  };
  template <typename Function>
  void load(const char* name, Function& function) {
    function = reinterpret_cast<Function>(::dlsym(library_, name));
  }

  void* library_;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*count_)(unsigned int*) = nullptr;
  int (*handle_)(unsigned int, void**) = nullptr;
  int (*name_)(void*, char*, unsigned int) = nullptr;
  int (*memory_)(void*, Memory*) = nullptr;
};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text + " ") {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  return words;
}

// MemTotal of /proc/meminfo, in bytes; 0 when it can't be read.
int64_t total_ram_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string name;
    int64_t kib = 0;
    if (fields >> name >> kib && name == "MemTotal:") return kib * 1024;
  }
  return 0;
}

template <typename T>
void keep_least(std::optional<T>& value, const std::optional<T>& other) {
  if (!value || !other) {
    value.reset();
  } else {
    value = std::min(*value, *other);
  }
}

}  // namespace

int64_t system_reserve_bytes(int64_t memory_bytes) { return 4'000'000'000 + memory_bytes / 20; }

int Hardware::num_devices() const {
  return std::accumulate(groups.begin(), groups.end(), 0,
                         [](int sum, const DeviceGroup& group) { return sum + group.count; });
}

PlanDevice Hardware::weakest() const {
  NIBBLE_CHECK(!groups.empty());
  PlanDevice device = groups.front().device;
  for (const DeviceGroup& group : groups) {
    const PlanDevice& other = group.device;
    if (other.memory_bytes < device.memory_bytes) {
      device.memory_bytes = other.memory_bytes;
      device.bytes_source = other.bytes_source;
    }
    keep_least(device.bandwidth, other.bandwidth);
    keep_least(device.bf16_flops, other.bf16_flops);
    keep_least(device.fp8_flops, other.fp8_flops);
    keep_least(device.fp4_flops, other.fp4_flops);
    if (device.id != other.id) {
      // Different boards have no fast link between them.
      device.link = "PCIe";
      keep_least(device.link_bidir, other.link_bidir);
      if (device.link_bidir) device.link_bidir = std::min(*device.link_bidir, 64e9);
      device.name += " + " + other.name;
    }
  }
  return device;
}

PlanResult<Hardware> hardware_of(const std::vector<DeviceCount>& devices) {
  Hardware hardware;
  for (const DeviceCount& wanted : devices) {
    PlanDevice device = NIBBLE_TRY(device_of(wanted.spec));
    if (device.is_cpu() && (devices.size() > 1 || wanted.count > 1)) {
      return plan_error(
          "conflict",
          fmt::format("--gpu {}: CPU machines cannot be joined with anything", wanted.spec.id),
          "--cpu NAME --ram GB describes the host of GPUs");
    }
    const int count = wanted.count * (device.is_cpu() ? 1 : wanted.spec.devices);
    if (count > 4096) {
      return plan_error("bad_value", fmt::format("--gpu {}: {} devices, expected at most 4096",
                                                 wanted.spec.id, count));
    }
    hardware.groups.push_back({std::move(device), count});
  }
  return hardware;
}

std::string hardware_title(const Hardware& hardware) {
  if (hardware.vram_bytes) {
    return fmt::format("{:.1f} GB of device memory",
                       static_cast<double>(*hardware.vram_bytes) / 1e9);
  }
  std::string title;
  for (const DeviceGroup& group : hardware.groups) {
    title += fmt::format("{}{} x {}", title.empty() ? "" : " + ", group.count, group.device.name);
  }
  return title;
}

const DeviceSpec* match_driver_name(const Catalogue& catalogue, const std::string& driver_name,
                                    int64_t memory_bytes) {
  const std::vector<std::string> driver = words_of(driver_name);
  const DeviceSpec* best = nullptr;
  int best_score = 0;
  bool several = false;
  for (const DeviceSpec& spec : catalogue.devices()) {
    if (spec.devices != 1 || spec.device_class == "cpu") continue;
    const auto device = device_of(spec);
    if (!device) continue;
    const double ratio =
        static_cast<double>(memory_bytes) / static_cast<double>(device->memory_bytes);
    // A nominal "96 GB" may be 96 GiB, 7 % more.
    if (ratio < 0.96 || ratio > (spec.memory_mib_reported ? 1.04 : 1.08)) continue;
    const std::vector<std::string> words = words_of(spec.name);
    int score = 0;
    bool has_number = false;
    for (const std::string& word : driver) {
      if (std::find(words.begin(), words.end(), word) == words.end()) continue;
      ++score;
      has_number |= std::any_of(word.begin(), word.end(),
                                [](unsigned char c) { return std::isdigit(c) != 0; });
    }
    if (!has_number) continue;
    // "NVIDIA H200" is the SXM board: the NVL one says so.
    for (const std::string& word : words) {
      if (word == "nvl" || word == "pcie" || word == "server" || word == "super" || word == "ti") {
        if (std::find(driver.begin(), driver.end(), word) == driver.end()) --score;
      }
    }
    if (score > best_score) {
      best = &spec;
      best_score = score;
      several = false;
    } else if (score == best_score) {
      several = true;
    }
  }
  return best_score > 0 && !several ? best : nullptr;
}

Hardware local_hardware(const Catalogue& catalogue, std::vector<std::string>* notes) {
  Hardware hardware;
  hardware.is_local = true;
  const int64_t ram = total_ram_bytes();
  for (const DriverGpu& gpu : DriverLibrary().gpus()) {
    PlanDevice device;
    if (const DeviceSpec* spec = match_driver_name(catalogue, gpu.name, gpu.memory_bytes)) {
      device = device_of(*spec).value();
    } else {
      device.id = "local";
      device.device_class = "datacenter";
      device.vendor = "NVIDIA";
      if (hardware.groups.empty()) {
        notes->push_back(
            fmt::format("no catalogue entry fits the driver's '{}' of {} MiB: no speed estimate",
                        gpu.name, gpu.memory_bytes >> 20));
      }
    }
    device.name = gpu.name;
    device.memory_bytes = gpu.memory_bytes;
    device.bytes_source = BytesSource::kDriver;
    if (!hardware.groups.empty() && hardware.groups.back().device.name == gpu.name &&
        hardware.groups.back().device.memory_bytes == gpu.memory_bytes) {
      ++hardware.groups.back().count;
    } else {
      hardware.groups.push_back({std::move(device), 1});
    }
  }
  if (!hardware.groups.empty()) {
    if (ram > 0) hardware.ram_bytes = ram;
    return hardware;
  }
  PlanDevice cpu;
  cpu.id = "local";
  cpu.name = "this machine's CPU";
  cpu.device_class = "cpu";
  cpu.memory_bytes = ram;
  cpu.bytes_source = BytesSource::kDriver;
  hardware.groups.push_back({std::move(cpu), 1});
  notes->push_back(
      "no NVIDIA driver found here: planned for the CPU and its RAM; --gpu NAMExN "
      "plans for other hardware");
  return hardware;
}

}  // namespace nibble
