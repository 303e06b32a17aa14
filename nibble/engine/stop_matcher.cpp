#include "nibble/engine/stop_matcher.h"

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble {

StopMatcher::StopMatcher(std::vector<std::string> stop, bool include_stop)
    : stop_(std::move(stop)), include_stop_(include_stop) {
  for (const std::string& text : stop_) {
    NIBBLE_CHECK(!text.empty());
    longest_ = std::max(longest_, text.size());
  }
}

StopMatcher::Output StopMatcher::push(std::string_view piece, bool matching) {
  std::string text = std::move(held_);
  held_.clear();
  text += piece;
  if (!matching) return {std::move(text), std::nullopt};

  size_t begin = std::string::npos;
  std::optional<size_t> match;
  for (size_t i = 0; i < stop_.size(); ++i) {
    const size_t found = text.find(stop_[i]);
    if (found == std::string::npos) continue;
    if (!match || found < begin || (found == begin && stop_[i].size() > stop_[*match].size())) {
      begin = found;
      match = i;
    }
  }
  if (match) {
    text.resize(begin + (include_stop_ ? stop_[*match].size() : 0));
    return {std::move(text), match};
  }
  held_ = text.substr(text.size() - holdable_suffix(text));
  text.resize(text.size() - held_.size());
  return {std::move(text), std::nullopt};
}

size_t StopMatcher::holdable_suffix(std::string_view text) const {
  for (size_t length = std::min(text.size(), longest_ > 0 ? longest_ - 1 : 0); length > 0;
       --length) {
    const std::string_view suffix = text.substr(text.size() - length);
    for (const std::string& stop : stop_) {
      if (stop.size() > length && std::string_view(stop).substr(0, length) == suffix) return length;
    }
  }
  return 0;
}

std::string StopMatcher::flush() {
  std::string text = std::move(held_);
  held_.clear();
  return text;
}

}  // namespace nibble
