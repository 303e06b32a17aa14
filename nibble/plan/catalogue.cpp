#include "nibble/plan/catalogue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <set>

#include "nibble/base/check.h"
#include "nibble/base/text.h"
#include "nibble/plan/embedded.h"

namespace nibble {
namespace {

using Setter = std::function<bool(DeviceSpec&, const std::string&)>;

struct Column {
  std::string_view name;
  Setter set;  // false for a value it does not take
};

Setter text(std::string DeviceSpec::*member) {
  return [member](DeviceSpec& spec, const std::string& value) {
    spec.*member = value;
    return true;
  };
}

// Empty is unknown; zero and below are mistakes.
Setter figure(std::optional<double> DeviceSpec::*member) {
  return [member](DeviceSpec& spec, const std::string& value) {
    if (value.empty()) return true;
    spec.*member = parse_number(value);
    return (spec.*member).has_value() && *(spec.*member) > 0 && *(spec.*member) < 1e12;
  };
}

Setter flag(bool DeviceSpec::*member) {
  return [member](DeviceSpec& spec, const std::string& value) {
    spec.*member = value == "1";
    return value.empty() || value == "0" || value == "1";
  };
}

const std::vector<Column>& columns() {
  static const std::vector<Column> kList = {
      {"id", text(&DeviceSpec::id)},
      {"name", text(&DeviceSpec::name)},
      {"vendor", text(&DeviceSpec::vendor)},
      {"class", text(&DeviceSpec::device_class)},
      {"devices",
       [](DeviceSpec& spec, const std::string& value) {
         const auto number = value.empty() ? 1.0 : parse_number(value).value_or(0);
         spec.devices = static_cast<int>(std::clamp(number, 0.0, 1e6));
         return number >= 1 && number <= 4096 && number == std::floor(number);
       }},
      {"memory_gb", figure(&DeviceSpec::memory_gb)},
      {"memory_mib_reported",
       [](DeviceSpec& spec, const std::string& value) {
         if (value.empty()) return true;
         const double number = parse_number(value).value_or(0);
         if (!(number >= 1 && number < 1e10 && number == std::floor(number))) return false;
         spec.memory_mib_reported = static_cast<int64_t>(number);
         return true;
       }},
      {"mem_bw_gbs", figure(&DeviceSpec::mem_bw_gbs)},
      {"bf16_dense_tflops", figure(&DeviceSpec::bf16_dense_tflops)},
      {"fp8_dense_tflops", figure(&DeviceSpec::fp8_dense_tflops)},
      {"fp4_dense_tflops", figure(&DeviceSpec::fp4_dense_tflops)},
      {"compute_capability", text(&DeviceSpec::compute_capability)},
      {"native_fp4", flag(&DeviceSpec::native_fp4)},
      {"fp4_formats", text(&DeviceSpec::fp4_formats)},
      {"link", text(&DeviceSpec::link)},
      {"link_bidir_gbs", figure(&DeviceSpec::link_bidir_gbs)},
      {"unified", flag(&DeviceSpec::unified)},
      {"tdp_w", figure(&DeviceSpec::tdp_w)},
      {"source", text(&DeviceSpec::source)},
      {"checked", text(&DeviceSpec::checked)},
      {"confidence", text(&DeviceSpec::confidence)},
      {"note", text(&DeviceSpec::note)},
  };
  return kList;
}

// One line of CSV; a field in quotes may hold commas and doubled quotes. Nothing when a quote is
// not closed.
std::optional<std::vector<std::string>> split_line(std::string_view line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') {
        fields.back() += c;
      } else if (i + 1 < line.size() && line[i + 1] == '"') {
        fields.back() += line[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  if (quoted) return std::nullopt;
  return fields;
}

std::string fold_id(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    if (c == '-' || c == '_' || c == ' ') continue;
    folded += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return folded;
}

// How far a mistyped name is from an id: from the whole, or from its first part ("b2000" is one
// letter from the "b200" of "b200-sxm").
int distance(std::string_view name, const std::string& id) {
  const std::string first = id.substr(0, id.find('-'));
  return std::min(edit_distance(fold_id(name), fold_id(id)),
                  edit_distance(fold_id(name), fold_id(first)));
}

constexpr int64_t kMib = int64_t{1} << 20;

PlanResult<DeviceSpec> parse_custom(std::string_view text) {
  const auto bad = [&](std::string_view part) {
    return plan_error("bad_value",
                      fmt::format("--gpu {}: '{}' is not understood, expected mem=96GiB and any of "
                                  "bw=, bf16=, fp8=, fp4=, link=, watts= with positive numbers",
                                  text, part));
  };
  DeviceSpec spec;
  spec.id = "custom";
  spec.name = "custom device";
  spec.vendor = "user";
  spec.device_class = "datacenter";
  spec.source = "command line";
  spec.checked = "no";
  spec.confidence = "user";
  std::string_view rest = text.substr(text.find(':') + 1);
  while (!rest.empty()) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) return bad(part);
    const std::string_view key = part.substr(0, equals);
    const std::string_view value = part.substr(equals + 1);
    if (key == "mem") {
      const auto bytes = parse_size(value);
      if (!bytes) return bad(part);
      spec.memory_gb = static_cast<double>(*bytes) / 1e9;
      continue;
    }
    const auto number = parse_number(value);
    if (!number || *number <= 0) return bad(part);
    if (key == "bw") {
      spec.mem_bw_gbs = number;
    } else if (key == "bf16") {
      spec.bf16_dense_tflops = number;
    } else if (key == "fp8") {
      spec.fp8_dense_tflops = number;
    } else if (key == "fp4") {
      spec.fp4_dense_tflops = number;
      spec.native_fp4 = true;
      spec.fp4_formats = "nvfp4";
    } else if (key == "link") {
      spec.link_bidir_gbs = number;
      spec.link =
          *number >= 200 ? "NVLink (assumed from its rate)" : "PCIe (assumed from its rate)";
    } else if (key == "watts") {
      spec.tdp_w = number;
    } else {
      return bad(part);
    }
  }
  if (!spec.memory_gb) return bad("(no mem)");
  return spec;
}

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

// Splits the count from "NAMExN", "NxNAME" and "NAME:N"; an empty count when there is none.
std::pair<std::string_view, std::string_view> split_count(std::string_view text,
                                                          const Catalogue& catalogue) {
  // An id may itself end in x and digits ("mi355x-8" does not, "x" alone would), so the whole text
  // wins when it is an id.
  for (const DeviceSpec& spec : catalogue.devices()) {
    if (fold_id(spec.id) == fold_id(text)) return {text, {}};
  }
  const size_t first = text.find_first_of("xX");
  if (first != std::string_view::npos && all_digits(text.substr(0, first))) {
    return {text.substr(first + 1), text.substr(0, first)};
  }
  size_t last = text.find_last_of("xX:");
  if (last != std::string_view::npos && last > 0) {
    std::string_view count = text.substr(last + 1);
    if (count.starts_with('-')) count.remove_prefix(1);
    if (all_digits(count)) return {text.substr(0, last), text.substr(last + 1)};
  }
  return {text, {}};
}

}  // namespace

bool DeviceSpec::has_nvfp4() const {
  return native_fp4 && fp4_formats.find("nvfp4") != std::string::npos;
}

std::string_view bytes_source_name(BytesSource source) {
  switch (source) {
    case BytesSource::kDriver:
      return "driver";
    case BytesSource::kReported:
      return "reported";
    case BytesSource::kNominal:
      return "nominal";
    case BytesSource::kUser:
      return "user";
  }
  return "?";
}

PlanResult<PlanDevice> device_of(const DeviceSpec& spec) {
  PlanDevice device;
  device.id = spec.id;
  device.name = spec.name;
  device.device_class = spec.device_class;
  device.vendor = spec.vendor;
  // The sockets of a CPU machine share its memory; the GPUs of a system each have their own.
  const int parts = device.is_cpu() ? 1 : spec.devices;
  if (spec.memory_mib_reported) {
    device.memory_bytes = *spec.memory_mib_reported * kMib / parts;
    device.bytes_source = BytesSource::kReported;
  } else if (spec.memory_gb) {
    device.memory_bytes = static_cast<int64_t>(std::llround(*spec.memory_gb * 1e9)) / parts;
    device.bytes_source = spec.vendor == "user" ? BytesSource::kUser : BytesSource::kNominal;
  } else {
    return plan_error("bad_value", fmt::format("the catalogue has no memory size for {}", spec.id));
  }
  const auto part = [&](const std::optional<double>& figure, double unit) {
    return figure ? std::optional(*figure * unit / parts) : std::nullopt;
  };
  device.bandwidth = part(spec.mem_bw_gbs, 1e9);
  device.bf16_flops = part(spec.bf16_dense_tflops, 1e12);
  device.fp8_flops = part(spec.fp8_dense_tflops, 1e12);
  if (spec.has_nvfp4()) device.fp4_flops = part(spec.fp4_dense_tflops, 1e12);
  device.tdp_w = part(spec.tdp_w, 1);
  device.link = spec.link;
  if (spec.link_bidir_gbs) device.link_bidir = *spec.link_bidir_gbs * 1e9;
  device.compute_capability = spec.compute_capability;
  device.checked = spec.is_checked();
  device.checked_figures = spec.checked;
  device.note = spec.note;
  if (device.is_cpu()) device.sockets = spec.devices;
  if (spec.device_class == "system") device.gpus_per_node = spec.devices;
  // A machine of its own, or a superchip whose fast link goes to its own host.
  if (device.is_unified() || spec.link.find("C2C") != std::string::npos) device.gpus_per_node = 1;
  // The GPUs of GB200, GB300 and Rubin come in racks of 72 that share one NVLink domain.
  if (spec.id == "gb200" || spec.id == "gb300" || spec.id == "rubin-r200")
    device.gpus_per_node = 72;
  return device;
}

const Catalogue& Catalogue::builtin() {
  static const Catalogue kCatalogue = [] {
    auto parsed = parse(kCatalogueCsv, "the built-in catalogue");
    NIBBLE_CHECK(parsed.has_value());  // a test reads every line of it
    return *std::move(parsed);
  }();
  return kCatalogue;
}

PlanResult<Catalogue> Catalogue::parse(std::string_view csv, std::string_view where) {
  Catalogue catalogue;
  std::vector<const Column*> header;
  std::set<std::string> ids;
  int line_number = 0;
  while (!csv.empty()) {
    std::string_view line = csv.substr(0, csv.find('\n'));
    csv.remove_prefix(std::min(csv.size(), line.size() + 1));
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    const auto place = fmt::format("{} line {}", where, line_number);
    const auto fields = split_line(line);
    if (!fields) return plan_error("bad_file", place + ": a quote is not closed");
    if (header.empty()) {
      for (const std::string& field : *fields) {
        const auto& known = columns();
        const auto column = std::find_if(known.begin(), known.end(),
                                         [&](const Column& c) { return c.name == field; });
        if (column == known.end()) {
          std::vector<std::string> names;
          names.reserve(known.size());
          for (const Column& c : known) names.emplace_back(c.name);
          return plan_error("bad_file", fmt::format("{}: unknown column '{}'{}", place, field,
                                                    did_you_mean(field, names)));
        }
        if (std::find(header.begin(), header.end(), &*column) != header.end()) {
          return plan_error("bad_file", fmt::format("{}: the column '{}' twice", place, field));
        }
        header.push_back(&*column);
      }
      continue;
    }
    if (fields->size() != header.size()) {
      return plan_error("bad_file", fmt::format("{}: {} columns, expected {}", place,
                                                fields->size(), header.size()));
    }
    DeviceSpec spec;
    for (size_t i = 0; i < header.size(); ++i) {
      if (!header[i]->set(spec, (*fields)[i])) {
        return plan_error("bad_file", fmt::format("{}: {} is '{}', expected a positive number",
                                                  place, header[i]->name, (*fields)[i]));
      }
    }
    if (spec.id.empty()) return plan_error("bad_file", place + ": the id is empty");
    if (!spec.memory_gb && !spec.memory_mib_reported) {
      return plan_error("bad_file", fmt::format("{}: {} has no memory_gb", place, spec.id));
    }
    if (spec.name.empty()) spec.name = spec.id;
    if (spec.device_class.empty()) spec.device_class = spec.unified ? "unified" : "datacenter";
    if (!ids.insert(fold_id(spec.id)).second) {
      return plan_error("bad_file", fmt::format("{}: the id '{}' a second time", place, spec.id));
    }
    catalogue.devices_.push_back(std::move(spec));
  }
  if (catalogue.devices_.empty()) {
    return plan_error("bad_file", fmt::format("{} holds no device", where));
  }
  return catalogue;
}

PlanResult<DeviceSpec> Catalogue::find(std::string_view name) const {
  const std::string wanted = fold_id(name);
  std::vector<const DeviceSpec*> fitting;
  for (const DeviceSpec& spec : devices_) {
    const std::string id = fold_id(spec.id);
    if (id == wanted) return spec;
    if (!wanted.empty() && id.starts_with(wanted)) fitting.push_back(&spec);
  }
  if (fitting.size() == 1) return *fitting.front();
  std::vector<std::string> ids;
  if (!fitting.empty()) {
    for (const DeviceSpec* spec : fitting) ids.push_back(spec->id);
    // "h200" is the SXM part to everyone; h200-nvl has to be named.
    const auto is_usual = [&](const DeviceSpec* spec) {
      return fold_id(spec->id) == wanted + "sxm";
    };
    const auto usual = std::find_if(fitting.begin(), fitting.end(), is_usual);
    if (usual != fitting.end()) return **usual;
    return plan_error("unknown_device",
                      fmt::format("the device '{}' could be {}", name, fmt::join(ids, ", ")),
                      "give the whole id; --gpu list prints the catalogue");
  }
  std::vector<std::pair<int, std::string>> near;
  // Nothing that long is a misspelt name, and distances of long texts take seconds.
  constexpr size_t kLongestName = 100;
  if (name.size() <= kLongestName) {
    for (const DeviceSpec& spec : devices_) near.emplace_back(distance(name, spec.id), spec.id);
  }
  std::stable_sort(near.begin(), near.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  const int limit = std::max<int>(1, static_cast<int>(wanted.size()) / 3);
  for (const auto& [steps, id] : near) {
    if (steps <= limit && ids.size() < 3) ids.push_back(id);
  }
  return plan_error(
      "unknown_device",
      fmt::format("the catalogue has no device '{}'{}", name,
                  ids.empty() ? "" : fmt::format("; did you mean {}?", fmt::join(ids, " or "))),
      "--gpu list prints the catalogue, --gpu custom:mem=96GiB,bw=1792 describes another device");
}

void Catalogue::merge(const Catalogue& other) {
  for (const DeviceSpec& spec : other.devices_) {
    const auto same = std::find_if(devices_.begin(), devices_.end(), [&](const DeviceSpec& d) {
      return fold_id(d.id) == fold_id(spec.id);
    });
    if (same == devices_.end()) {
      devices_.push_back(spec);
    } else {
      *same = spec;
    }
  }
}

PlanResult<DeviceCount> parse_device_count(std::string_view text, const Catalogue& catalogue) {
  std::string_view name = text;
  std::string_view count;
  if (text.starts_with("custom:")) {
    const size_t last = text.find_last_of('x');
    if (last != std::string_view::npos && all_digits(text.substr(last + 1))) {
      name = text.substr(0, last);
      count = text.substr(last + 1);
    }
  } else {
    std::tie(name, count) = split_count(text, catalogue);
  }
  DeviceCount result;
  if (!count.empty()) {
    const double number = parse_number(count).value_or(0);
    if (!(number >= 1 && number <= 4096)) {
      return plan_error("bad_value",
                        fmt::format("--gpu {}: the count is {}, expected 1 to 4096", text, count));
    }
    result.count = static_cast<int>(number);
  }
  if (name.starts_with("custom:")) {
    result.spec = NIBBLE_TRY(parse_custom(name));
  } else {
    result.spec = NIBBLE_TRY(catalogue.find(name));
  }
  return result;
}

std::optional<double> parse_number(std::string_view text) {
  // strtod also takes hexadecimal, "inf", leading blanks: only digits, sign, point and exponent.
  if (text.empty() || text.find_first_not_of("0123456789+-.eE") != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string copy(text);
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  if (end != copy.c_str() + copy.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<int64_t> parse_size(std::string_view text) {
  const size_t unit_at = std::min(text.find_first_not_of("0123456789.+-"), text.size());
  const auto number = parse_number(text.substr(0, unit_at));
  std::string unit;
  for (const char c : text.substr(unit_at)) {
    unit += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  constexpr std::array<std::pair<std::string_view, double>, 9> kUnits = {{{"", 1e9},
                                                                          {"gb", 1e9},
                                                                          {"g", 1e9},
                                                                          {"gib", 1073741824.0},
                                                                          {"tb", 1e12},
                                                                          {"t", 1e12},
                                                                          {"tib", 1099511627776.0},
                                                                          {"mb", 1e6},
                                                                          {"mib", 1048576.0}}};
  for (const auto& [name, bytes] : kUnits) {
    if (unit != name) continue;
    if (!number || *number * bytes < 1 || *number * bytes > 1e15) return std::nullopt;
    return static_cast<int64_t>(std::llround(*number * bytes));
  }
  return std::nullopt;
}

}  // namespace nibble
