#include "nibble/checkpoint/name_patterns.h"

#include <fmt/format.h>

#include <charconv>

#include "nibble/base/text.h"

namespace nibble {
namespace {

// Calls part(text, is_number) for the pieces between dots. A number of more than 9 digits is text.
template <typename Part>
void for_each_part(std::string_view name, Part part) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view piece = name.substr(begin, end - begin);
    const bool is_number = !piece.empty() && piece.size() <= 9 &&
                           piece.find_first_not_of("0123456789") == std::string_view::npos;
    part(piece, is_number);
    begin = end + 1;
  }
}

std::string ranges(const std::set<int64_t>& numbers) {
  if (numbers.size() == 1) return std::to_string(*numbers.begin());
  std::string text;
  for (auto it = numbers.begin(); it != numbers.end();) {
    const int64_t first = *it;
    int64_t last = first;
    for (++it; it != numbers.end() && *it == last + 1; ++it) last = *it;
    if (!text.empty()) text += ',';
    text += first == last ? std::to_string(first) : fmt::format("{}-{}", first, last);
  }
  return "{" + text + "}";
}

}  // namespace

std::string NamePattern::key(std::string_view name) {
  std::string key;
  for_each_part(name, [&](std::string_view piece, bool is_number) {
    if (!key.empty()) key += '.';
    key += is_number ? "*" : piece;
  });
  return key;
}

void NamePattern::add(std::string_view name) {
  if (count_++ == 0) key_ = key(name);
  size_t slot = 0;
  for_each_part(name, [&](std::string_view piece, bool is_number) {
    if (!is_number) return;
    int64_t number = 0;
    std::from_chars(piece.data(), piece.data() + piece.size(), number);
    if (numbers_.size() <= slot) numbers_.emplace_back();
    numbers_[slot++].insert(number);
  });
}

std::string NamePattern::to_string() const {
  std::string text;
  size_t slot = 0;
  for_each_part(key_, [&](std::string_view piece, bool /*is_number*/) {
    if (!text.empty()) text += '.';
    // A name may hold a '*' of its own.
    const bool is_slot = piece == "*" && slot < numbers_.size();
    text += is_slot ? ranges(numbers_[slot++]) : std::string(piece);
  });
  return text;
}

std::vector<std::string> summarize_names(const std::vector<std::string>& names) {
  std::map<std::string, NamePattern> patterns;
  std::map<std::string, std::string> single;
  for (const std::string& name : names) {
    const std::string key = NamePattern::key(name);
    patterns[key].add(name);
    single[key] = name;
  }
  std::vector<std::string> lines;
  lines.reserve(patterns.size());
  for (const auto& [key, pattern] : patterns) {
    lines.push_back(pattern.count() == 1
                        ? single[key]
                        : fmt::format("{} ({} tensors)", pattern.to_string(),
                                      format_count(static_cast<uint64_t>(pattern.count()))));
  }
  return lines;
}

}  // namespace nibble
