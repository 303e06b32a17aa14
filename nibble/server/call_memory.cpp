#include "nibble/server/call_memory.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace nibble {
namespace {

// The APIs write "call_x" and "toolu_x" for the same call.
std::string key_of(const std::string& id) { return id.substr(id.find('_') + 1); }

// [begin, end) between the tags of each call.
std::vector<std::pair<size_t, size_t>> find_calls(const std::vector<int32_t>& ids,
                                                  const ReplyTags& tags) {
  std::vector<std::pair<size_t, size_t>> found;
  size_t begin = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == tags.call_begin) begin = i + 1;
    if (ids[i] == tags.call_end && begin > 0) {
      found.emplace_back(begin, i);
      begin = 0;
    }
  }
  return found;
}

bool same_json(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const auto x = nlohmann::json::parse(a, nullptr, false);
  return !x.is_discarded() && x == nlohmann::json::parse(b, nullptr, false);
}

}  // namespace

void CallMemory::remember(const std::vector<NamedCall>& calls, const std::vector<int32_t>& reply,
                          const ReplyTags& tags) {
  if (calls.empty() || tags.call_begin < 0 || tags.call_end < 0) return;
  const auto places = find_calls(reply, tags);
  if (places.size() != calls.size()) return;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < calls.size(); ++i) {
    const auto [begin, end] = places[i];
    if (end - begin > max_tokens_ / 16) continue;
    Entry entry{key_of(calls[i].id), calls[i].name, calls[i].arguments, {}};
    entry.ids.assign(reply.begin() + static_cast<std::ptrdiff_t>(begin),
                     reply.begin() + static_cast<std::ptrdiff_t>(end));
    num_tokens_ += entry.ids.size();
    entries_.push_back(std::move(entry));
    by_key_[entries_.back().key] = std::prev(entries_.end());
  }
  while (entries_.size() > max_calls_ || num_tokens_ > max_tokens_) {
    const auto known = by_key_.find(entries_.front().key);
    if (known != by_key_.end() && known->second == entries_.begin()) by_key_.erase(known);
    num_tokens_ -= entries_.front().ids.size();
    entries_.pop_front();
  }
}

size_t CallMemory::replay(const std::vector<NamedCall>& calls, const ReplyTags& tags,
                          std::vector<int32_t>* prompt) const {
  if (calls.empty() || tags.call_begin < 0 || tags.call_end < 0) return 0;
  const auto places = find_calls(*prompt, tags);
  if (places.size() != calls.size()) return 0;
  const std::lock_guard lock(mutex_);
  size_t replayed = 0;
  for (size_t i = calls.size(); i-- > 0;) {  // from behind, so that the places stay
    const auto known = by_key_.find(key_of(calls[i].id));
    if (known == by_key_.end()) continue;
    const Entry& entry = *known->second;
    if (entry.name != calls[i].name || !same_json(entry.arguments, calls[i].arguments)) continue;
    const auto begin = prompt->begin() + static_cast<std::ptrdiff_t>(places[i].first);
    const auto end = prompt->begin() + static_cast<std::ptrdiff_t>(places[i].second);
    const auto at = prompt->erase(begin, end);
    prompt->insert(at, entry.ids.begin(), entry.ids.end());
    ++replayed;
  }
  return replayed;
}

size_t CallMemory::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace nibble
