#include "nibble/base/processors.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <string>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr int kMostProcessors = CPU_SETSIZE;

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// The number at the front of `text`, which loses it; -1 when there is none below kMostProcessors.
int take_number(std::string_view& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0 || value >= kMostProcessors) return -1;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Processors that a folder's quota allows, 0 for no quota: cpu.max of version 2 holds "max 100000"
// or "quota period"; version 1 has a file for each, -1 for none.
double folder_quota(const std::filesystem::path& folder) {
  double quota = 0;
  double period = 0;
  if (std::ifstream both(folder / "cpu.max"); both) {
    if (both >> quota >> period && period > 0) return quota / period;
    return 0;
  }
  std::ifstream quota_file(folder / "cpu.cfs_quota_us");
  std::ifstream period_file(folder / "cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return quota / period;
  }
  return 0;
}

}  // namespace

Result<std::vector<int>> parse_processor_list(std::string_view text) {
  std::vector<int> processors;
  std::string_view rest = trimmed(text);
  const auto wrong = [&] {
    return invalid_argument(
        fmt::format("'{}' is no list of processors such as 0-3,8", trimmed(text)));
  };
  while (!rest.empty()) {
    const int first = take_number(rest);
    int last = first;
    if (!rest.empty() && rest.front() == '-') {
      rest.remove_prefix(1);
      last = take_number(rest);
    }
    if (first < 0 || last < first) return wrong();
    for (int i = first; i <= last; ++i) processors.push_back(i);
    if (rest.empty()) break;
    if (rest.front() != ',' || rest.size() == 1) return wrong();
    rest.remove_prefix(1);
  }
  return processors;
}

std::vector<int> allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int i = 0; i < kMostProcessors; ++i) {
      if (CPU_ISSET(i, &set)) processors.push_back(i);
    }
  }
  if (processors.empty()) processors.push_back(0);
  return processors;
}

std::vector<NumaNode> numa_nodes(const std::vector<int>& allowed,
                                 const std::filesystem::path& root) {
  std::vector<NumaNode> nodes;
  std::error_code error;
  const auto folder = root / "sys/devices/system/node";
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::string_view number = name;
    if (!number.starts_with("node")) continue;
    number.remove_prefix(4);
    NumaNode node;
    node.id = take_number(number);
    if (node.id < 0 || !number.empty()) continue;
    const auto listed = parse_processor_list(file_text(entry->path() / "cpulist"));
    if (!listed) continue;
    std::set_intersection(listed->begin(), listed->end(), allowed.begin(), allowed.end(),
                          std::back_inserter(node.processors));
    if (!node.processors.empty()) nodes.push_back(std::move(node));
  }
  std::sort(nodes.begin(), nodes.end(),
            [](const NumaNode& a, const NumaNode& b) { return a.id < b.id; });
  size_t found = 0;
  for (const NumaNode& node : nodes) found += node.processors.size();
  if (found != allowed.size()) return {NumaNode{0, allowed}};
  return nodes;
}

std::vector<std::vector<int>> place_threads(int num_threads, const std::vector<NumaNode>& nodes) {
  std::vector<int> all;
  for (const NumaNode& node : nodes) {
    all.insert(all.end(), node.processors.begin(), node.processors.end());
  }
  const auto threads = static_cast<size_t>(num_threads);
  std::vector<std::vector<int>> places(threads);
  if (threads >= all.size()) {
    for (size_t i = 0; i < all.size(); ++i) places[i] = {all[i]};
  } else if (nodes.size() > 1) {
    for (size_t i = 0; i < threads; ++i) places[i] = nodes[i * nodes.size() / threads].processors;
  }
  return places;
}

std::vector<size_t> thread_nodes(const std::vector<std::vector<int>>& places,
                                 const std::vector<NumaNode>& nodes) {
  std::vector<size_t> result(places.size());
  for (size_t i = 0; i < places.size(); ++i) {
    result[i] = i % nodes.size();
    for (size_t n = 0; n < nodes.size() && !places[i].empty(); ++n) {
      const std::vector<int>& processors = nodes[n].processors;
      if (std::binary_search(processors.begin(), processors.end(), places[i][0])) result[i] = n;
    }
  }
  return result;
}

void keep_thread_to(const std::vector<int>& processors) {
  if (processors.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int processor : processors) CPU_SET(processor, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

int within_cpu_quota(int processors, const std::filesystem::path& root) {
  // Lines "0::/path" (version 2) and "4:cpu,cpuacct:/path" (version 1). A container usually sees
  // its own group as "/".
  double least = 0;
  std::ifstream groups(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const size_t names = line.find(':');
    const size_t path = names == std::string::npos ? names : line.find(':', names + 1);
    if (path == std::string::npos) continue;
    const std::string controllers = line.substr(names + 1, path - names - 1);
    std::filesystem::path mount = root / "sys/fs/cgroup";
    if (!controllers.empty()) {
      if (("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
      mount /= controllers;
    }
    std::filesystem::path group = line.substr(path + 1);
    for (;; group = group.parent_path()) {
      const double quota = folder_quota(mount / group.relative_path());
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (group.relative_path().empty()) break;
    }
  }
  if (least == 0) return processors;
  return std::clamp(static_cast<int>(least), 1, processors);
}

}  // namespace nibble
