#include "nibble/model/expert_placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/kernels/expert_dispatch.h"

namespace nibble {
namespace {

constexpr int kMostExperts = 65536;
constexpr size_t kMostBytes = size_t{64} << 20;

// Splits at single spaces.
class Words {
 public:
  explicit Words(std::string_view line) : rest_(line) {}

  bool at_end() const { return rest_.empty(); }
  std::string_view next() {
    const size_t end = std::min(rest_.find(' '), rest_.size());
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return word;
  }
  // In 0 .. most.
  std::optional<int> number(int most) {
    const std::string_view word = next();
    int value = 0;
    const auto [end, problem] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (problem != std::errc() || end != word.data() + word.size()) return std::nullopt;
    if (value < 0 || value > most) return std::nullopt;
    return value;
  }

 private:
  std::string_view rest_;
};

// What is wrong with a layer's slots, or nothing.
std::string problem_of(std::span<const int32_t> slots, const ExpertPlacement& placement) {
  std::vector<int> in_group(static_cast<size_t>(placement.num_experts), -1);
  for (size_t i = 0; i < slots.size(); ++i) {
    const int group = static_cast<int>(i) / placement.slots_per_group;
    int& last = in_group[static_cast<size_t>(slots[i])];
    if (last == group) return fmt::format("group {} holds expert {} twice", group, slots[i]);
    last = group;
  }
  const auto missing = std::find(in_group.begin(), in_group.end(), -1);
  if (missing == in_group.end()) return {};
  return fmt::format("expert {} is nowhere", missing - in_group.begin());
}

Result<ExpertPlacement> parse_header(std::string_view line) {
  ExpertPlacement placement;
  Words words(line);
  const auto field = [&](std::string_view name, int* value) {
    if (words.next() != name) return false;
    const auto number = words.number(kMostExperts);
    *value = number.value_or(0);
    return *value > 0;
  };
  const bool good = words.next() == "nibble-expert-placement" && words.next() == "1" &&
                    field("experts", &placement.num_experts) &&
                    field("groups", &placement.num_groups) &&
                    field("slots", &placement.slots_per_group) && words.at_end();
  if (!good) {
    return corrupt(
        "line 1: expected 'nibble-expert-placement 1 experts N groups N slots N', with N from 1 to "
        "65536");
  }
  if (placement.num_groups > 1024) {
    return corrupt(fmt::format("line 1: {} groups, expected 1 to 1024", placement.num_groups));
  }
  if (placement.slots_per_group > placement.num_experts ||
      int64_t{placement.num_groups} * placement.slots_per_group < placement.num_experts) {
    return corrupt(
        fmt::format("line 1: {} groups of {} slots for {} experts: each group needs "
                    "fewer, or all of them more",
                    placement.num_groups, placement.slots_per_group, placement.num_experts));
  }
  return placement;
}

}  // namespace

std::vector<int32_t> ExpertPlacement::slots_of(int layer) const {
  if (const auto found = layers.find(layer); found != layers.end()) return found->second;
  std::vector<int32_t> slots;
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t first = group * num_experts / num_groups;
    for (int i = 0; i < slots_per_group; ++i) {
      slots.push_back(static_cast<int32_t>((first + i) % num_experts));
    }
  }
  return slots;
}

void ExpertSlots::place(int64_t count, const float* weights, int32_t* expert_ids) const {
  place_experts(count, weights, {begin.data(), slots.data()}, expert_ids);
}

ExpertSlots ExpertPlacement::index_of(int layer) const {
  const std::vector<int32_t> slots = slots_of(layer);
  ExpertSlots index;
  index.begin.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (const int32_t expert : slots) ++index.begin[static_cast<size_t>(expert) + 1];
  std::partial_sum(index.begin.begin(), index.begin.end(), index.begin.begin());
  index.slots.resize(slots.size());
  std::vector<int32_t> next(index.begin.begin(), index.begin.end() - 1);
  for (size_t i = 0; i < slots.size(); ++i) {
    index.slots[static_cast<size_t>(next[static_cast<size_t>(slots[i])]++)] =
        static_cast<int32_t>(i);
  }
  return index;
}

Result<ExpertPlacement> parse_expert_placement(std::string_view text) {
  ExpertPlacement placement;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (number == 1) {
      placement = NIBBLE_TRY(parse_header(line));
      continue;
    }
    Words words(line);
    const auto layer = words.number(kMostExperts);
    if (!layer) return corrupt(fmt::format("line {}: expected a layer's number", number));
    std::vector<int32_t> slots;
    while (!words.at_end()) {
      const auto expert = words.number(placement.num_experts - 1);
      if (!expert) {
        return corrupt(fmt::format("line {}: slot {} is not an expert, 0 to {}", number,
                                   slots.size(), placement.num_experts - 1));
      }
      slots.push_back(*expert);
    }
    if (static_cast<int>(slots.size()) != placement.num_slots()) {
      return corrupt(fmt::format("line {}: {} slots, expected {}", number, slots.size(),
                                 placement.num_slots()));
    }
    const std::string problem = problem_of(slots, placement);
    if (!problem.empty()) return corrupt(fmt::format("line {}: {}", number, problem));
    if (!placement.layers.emplace(*layer, std::move(slots)).second) {
      return corrupt(fmt::format("line {}: layer {} a second time", number, *layer));
    }
  }
  if (placement.num_experts == 0) return corrupt("the file is empty");
  return placement;
}

Result<ExpertPlacement> load_expert_placement(const std::filesystem::path& path) {
  const std::string text = NIBBLE_TRY(read_text_file(path, kMostBytes));
  return with_context(parse_expert_placement(text), path.string());
}

std::string to_text(const ExpertPlacement& placement) {
  std::string text =
      fmt::format("nibble-expert-placement 1 experts {} groups {} slots {}\n",
                  placement.num_experts, placement.num_groups, placement.slots_per_group);
  for (const auto& [layer, slots] : placement.layers) {
    text += fmt::format("{} {}\n", layer, fmt::join(slots, " "));
  }
  return text;
}

namespace {

// How many copies of each expert.
std::vector<int> count_copies(std::span<const double> load, int num_groups, int num_replicas) {
  std::vector<int> copies(load.size(), 1);
  for (int i = 0; i < num_replicas; ++i) {
    size_t most = load.size();
    for (size_t e = 0; e < load.size(); ++e) {
      if (copies[e] == num_groups) continue;  // one in each group is all that can be
      if (most == load.size() || load[e] / copies[e] > load[most] / copies[most]) most = e;
    }
    ++copies[most];
  }
  return copies;
}

// Groups that are full early leave the last ones too much: exchanges experts of the busiest group
// for lighter ones of others, the best exchange first, as long as the busier of the two gets less.
void exchange_experts(std::vector<std::vector<int32_t>>& held,
                      std::span<const double> load_of_copy) {
  const auto sum = [&](const std::vector<int32_t>& experts) {
    double of_group = 0;
    for (const int32_t e : experts) of_group += load_of_copy[static_cast<size_t>(e)];
    return of_group;
  };
  const auto holds = [](const std::vector<int32_t>& experts, int32_t expert) {
    return std::find(experts.begin(), experts.end(), expert) != experts.end();
  };
  std::vector<double> sums(held.size());
  for (size_t g = 0; g < held.size(); ++g) sums[g] = sum(held[g]);
  for (size_t round = 0; round < load_of_copy.size(); ++round) {
    const auto busiest =
        static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
    double best = sums[busiest] * (1 - 1e-9);
    int32_t* from = nullptr;
    int32_t* to = nullptr;
    for (size_t g = 0; g < held.size(); ++g) {
      if (g == busiest) continue;
      for (int32_t& mine : held[busiest]) {
        for (int32_t& other : held[g]) {
          const double moved =
              load_of_copy[static_cast<size_t>(mine)] - load_of_copy[static_cast<size_t>(other)];
          const double busier = std::max(sums[busiest] - moved, sums[g] + moved);
          if (busier >= best || holds(held[g], mine) || holds(held[busiest], other)) continue;
          best = busier;
          from = &mine;
          to = &other;
        }
      }
    }
    if (from == nullptr) return;
    std::swap(*from, *to);
    for (size_t g = 0; g < held.size(); ++g) sums[g] = sum(held[g]);
  }
}

std::vector<int32_t> balance_layer(std::span<const double> load, const ExpertPlacement& placement,
                                   int num_replicas) {
  struct Copy {
    int32_t expert;
    double load;
    int copies;
  };
  const std::vector<int> copies = count_copies(load, placement.num_groups, num_replicas);
  std::vector<Copy> all;
  for (size_t e = 0; e < load.size(); ++e) {
    const Copy copy{static_cast<int32_t>(e), load[e] / copies[e], copies[e]};
    all.insert(all.end(), static_cast<size_t>(copies[e]), copy);
  }
  // Experts with a copy in many groups have the least choice: they come first.
  std::stable_sort(all.begin(), all.end(), [](const Copy& a, const Copy& b) {
    return (a.copies > 1) != (b.copies > 1) ? a.copies > b.copies : a.load > b.load;
  });
  const auto groups = static_cast<size_t>(placement.num_groups);
  std::vector<double> sums(groups, 0);
  std::vector<std::vector<int32_t>> held(groups);
  for (const Copy& copy : all) {
    size_t best = groups;
    for (size_t g = 0; g < groups; ++g) {
      const auto& experts = held[g];
      if (static_cast<int>(experts.size()) == placement.slots_per_group) continue;
      if (std::find(experts.begin(), experts.end(), copy.expert) != experts.end()) continue;
      if (best == groups || sums[g] < sums[best] ||
          (sums[g] == sums[best] && experts.size() < held[best].size())) {
        best = g;
      }
    }
    if (best == groups) return {};
    held[best].push_back(copy.expert);
    sums[best] += copy.load;
  }
  std::vector<double> load_of_copy(load.begin(), load.end());
  for (size_t e = 0; e < load.size(); ++e) load_of_copy[e] /= copies[e];
  exchange_experts(held, load_of_copy);
  std::vector<int32_t> slots;
  for (auto& experts : held) {
    std::sort(experts.begin(), experts.end());
    slots.insert(slots.end(), experts.begin(), experts.end());
  }
  return slots;
}

}  // namespace

Result<ExpertPlacement> balance_experts(const ExpertLoad& load, int num_experts, int num_groups,
                                        int num_replicas) {
  if (num_groups < 1 || num_replicas < 0 || (num_experts + num_replicas) % num_groups != 0) {
    return invalid_argument(
        fmt::format("{} experts and {} replicas cannot be dealt evenly to {} groups", num_experts,
                    num_replicas, num_groups));
  }
  ExpertPlacement placement;
  placement.num_experts = num_experts;
  placement.num_groups = num_groups;
  placement.slots_per_group = (num_experts + num_replicas) / num_groups;
  if (placement.slots_per_group > num_experts) {
    return invalid_argument(fmt::format("{} replicas of {} experts: {} groups can hold {} at most",
                                        num_replicas, num_experts, num_groups,
                                        num_experts * (num_groups - 1)));
  }
  for (const auto& [layer, of_expert] : load) {
    NIBBLE_CHECK(static_cast<int>(of_expert.size()) == num_experts);
    std::vector<int32_t> slots = balance_layer(of_expert, placement, num_replicas);
    // Rarely, the last copies find room only where the expert already is.
    if (slots.empty()) {
      return invalid_argument(fmt::format(
          "layer {}: {} replicas leave no place for one; ask for fewer", layer, num_replicas));
    }
    placement.layers.emplace(layer, std::move(slots));
  }
  return placement;
}

double imbalance(std::span<const int32_t> slots, int num_groups, std::span<const double> load) {
  std::vector<int> copies(load.size(), 0);
  for (const int32_t expert : slots) ++copies[static_cast<size_t>(expert)];
  std::vector<double> sums(static_cast<size_t>(num_groups), 0);
  const size_t of_group = slots.size() / sums.size();
  double total = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const auto e = static_cast<size_t>(slots[i]);
    sums[i / of_group] += load[e] / copies[e];
    total += load[e] / copies[e];
  }
  if (total <= 0) return 1;
  return *std::max_element(sums.begin(), sums.end()) * num_groups / total;
}

}  // namespace nibble
