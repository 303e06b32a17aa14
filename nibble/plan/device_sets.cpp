#include "nibble/plan/device_sets.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <limits>

#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr int kMostGpus = 64;

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::string_view verdict_of(const DeviceSet& set) {
  return set.report ? verdict_name(set.report->chosen.verdict) : "does_not_fit";
}

std::optional<double> sort_value(const DeviceSet& set, std::string_view key) {
  const SpeedPoint* point = set.report ? set.report->asked_point() : nullptr;
  const auto known = [](const SpeedPoint* p, double value) {
    return p == nullptr ? std::nullopt : std::optional(value);
  };
  if (key == "gpus") return set.gpus;
  if (key == "memory") {
    return set.report
               ? std::optional(static_cast<double>(set.report->device.memory_bytes) * set.gpus)
               : std::nullopt;
  }
  // Fast first.
  if (key == "tok_s") return known(point, point == nullptr ? 0 : -point->tokens_per_second);
  if (key == "per_user") return known(point, point == nullptr ? 0 : -point->per_user());
  if (key == "watts") return set.report ? set.report->watts : std::nullopt;
  if (key == "energy") return set.report ? set.report->joules_per_token : std::nullopt;
  if (key == "price") return set.price_hour;
  if (key == "cheapest") {
    // Sets with a price come before those that can only be compared by watts.
    if (set.price_hour) return *set.price_hour * 1e-9;
    return set.report ? set.report->watts : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

bool has_backend(const DeviceSpec& spec) {
  return spec.device_class == "cpu" || spec.vendor == "NVIDIA" || spec.vendor == "user";
}

std::string set_title(const DeviceSet& set) {
  return set.entries == 1 ? set.spec.name : fmt::format("{}x {}", set.entries, set.spec.name);
}

DeviceSet smallest_set(const PlanModel& model, const std::optional<PlanFormat>& format,
                       const DeviceSpec& spec, const Hardware& beside, const PlanRequest& request,
                       const PlanConstants& constants,
                       const std::map<std::string, double>& prices) {
  DeviceSet set;
  set.spec = spec;
  const bool single =
      spec.device_class == "cpu" || (spec.device_class == "unified" && !spec.link_bidir_gbs);
  // Two DGX Spark can be linked; no unified machine joins more.
  const int most = spec.device_class == "unified" ? 2 : kMostGpus;
  const int gpus_inside = spec.device_class == "cpu" ? 1 : spec.devices;
  const auto tried = [&](int count) {
    return count == 1 || (!single && count * gpus_inside <= std::max(most, gpus_inside));
  };
  for (int count = 1; tried(count); count *= 2) {
    auto hardware = hardware_of({{spec, count}});
    if (!hardware) {
      set.reason = hardware.error().message;
      return set;
    }
    auto kept = std::make_shared<Hardware>(*std::move(hardware));
    if (spec.device_class != "cpu" && spec.device_class != "unified") {
      kept->ram_bytes = beside.ram_bytes;
      kept->cpu = beside.cpu;
    }
    kept->ssd = beside.ssd;
    kept->ssd_bytes = beside.ssd_bytes;
    kept->ssd_rate = beside.ssd_rate;
    auto report = make_plan(model, format, *kept, request, constants);
    if (!report) {
      if (!set.report) set.reason = report.error().message;
      continue;
    }
    set.entries = count;
    set.gpus = count * gpus_inside;
    set.nodes = (set.gpus + report->device.gpus_per_node - 1) / report->device.gpus_per_node;
    set.hardware = std::move(kept);
    set.report = *std::move(report);
    set.reason.clear();
    if (set.holds()) break;
  }
  if (const auto price = prices.find(spec.id); price != prices.end()) {
    set.price_hour = price->second * set.entries;
  }
  return set;
}

std::vector<DeviceSet> smallest_sets(const PlanModel& model,
                                     const std::optional<PlanFormat>& format,
                                     const Catalogue& catalogue, const Hardware& beside,
                                     const PlanRequest& request, const PlanConstants& constants,
                                     const std::map<std::string, double>& prices) {
  std::vector<DeviceSet> sets;
  for (const DeviceSpec& spec : catalogue.devices()) {
    sets.push_back(smallest_set(model, format, spec, beside, request, constants, prices));
  }
  return sets;
}

PlanStatus filter_sets(std::vector<DeviceSet>& sets, std::string_view filter) {
  const size_t equals = filter.find('=');
  const std::string key = lower(filter.substr(0, equals));
  const std::string value =
      equals == std::string_view::npos ? "" : lower(filter.substr(equals + 1));
  const auto keep = [&](const auto& condition) {
    std::erase_if(sets, [&](const DeviceSet& set) { return !condition(set); });
    return PlanStatus{};
  };
  const auto bad = [&](std::string_view expected) {
    return plan_error("bad_value", fmt::format("--filter {}: expected {}", filter, expected));
  };
  if (key == "vendor")
    return keep([&](const DeviceSet& s) { return lower(s.spec.vendor) == value; });
  if (key == "class") return keep([&](const DeviceSet& s) { return s.spec.device_class == value; });
  if (key == "name") {
    return keep([&](const DeviceSet& s) {
      return lower(s.spec.name + " " + s.spec.id).find(value) != std::string::npos;
    });
  }
  if (key == "verdict") {
    constexpr std::array<std::string_view, 5> kVerdicts = {"fits", "tight", "offload",
                                                           "does_not_fit", "holds"};
    if (std::find(kVerdicts.begin(), kVerdicts.end(), value) == kVerdicts.end()) {
      return bad("verdict= fits, tight, offload, does_not_fit or holds");
    }
    return keep(
        [&](const DeviceSet& s) { return value == "holds" ? s.holds() : verdict_of(s) == value; });
  }
  if (key == "checked" || key == "runs") {
    if (value != "yes" && value != "no") return bad(key + "=yes or " + key + "=no");
    return keep([&](const DeviceSet& s) {
      return (key == "runs" ? has_backend(s.spec) : s.spec.is_checked()) == (value == "yes");
    });
  }
  if (key == "gpus") {
    const auto most = parse_number(value);
    if (!most || *most < 1) return bad("gpus=N, at most so many devices");
    return keep([&](const DeviceSet& s) { return s.gpus <= *most; });
  }
  return bad("KEY=VALUE with a key of vendor, class, verdict, checked, runs, name, gpus");
}

PlanStatus sort_sets(std::vector<DeviceSet>& sets, std::string_view key) {
  constexpr std::array<std::string_view, 9> kKeys = {
      "name", "gpus", "memory", "tok_s", "per_user", "watts", "energy", "price", "cheapest"};
  if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
    const std::vector<std::string> names(kKeys.begin(), kKeys.end());
    return plan_error("bad_value",
                      fmt::format("--sort {}{}: expected name, gpus, memory, tok_s, per_user, "
                                  "watts, energy, price or cheapest",
                                  key, did_you_mean(key, names)));
  }
  std::stable_sort(sets.begin(), sets.end(), [&](const DeviceSet& a, const DeviceSet& b) {
    if (key == "name") return lower(a.spec.name) < lower(b.spec.name);
    if (a.holds() != b.holds()) return a.holds();
    constexpr double kLast = std::numeric_limits<double>::infinity();
    return sort_value(a, key).value_or(kLast) < sort_value(b, key).value_or(kLast);
  });
  return {};
}

}  // namespace nibble
