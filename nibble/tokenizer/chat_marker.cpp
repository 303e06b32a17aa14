#include "nibble/tokenizer/chat_marker.h"

#include <bitset>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble {
namespace {

constexpr char32_t kFirstMark = 0xf8ff;
constexpr char32_t kLastMark = 0xe000;  // the private use area, downwards

using UsedMarks = std::bitset<kFirstMark - kLastMark + 1>;

void collect(std::string_view text, UsedMarks& used) {
  // In UTF-8 the area is 0xEE 0x80 0x80 to 0xEF 0xA3 0xBF.
  for (size_t i = 0; i + 2 < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead != 0xee && lead != 0xef) continue;
    size_t position = i;
    const char32_t c = jinja::next_code_point(text, &position);
    if (c >= kLastMark && c <= kFirstMark) used.set(c - kLastMark);
  }
}

void collect(const jinja::Value& value, UsedMarks& used) {
  if (value.is(jinja::Kind::kString)) collect(value.as_string(), used);
  if (value.is_sequence()) {
    for (const jinja::Value& item : value.as_sequence().items) collect(item, used);
  }
  if (!value.is(jinja::Kind::kDict)) return;
  for (const auto& [key, item] : value.as_dict().entries()) {
    collect(key, used);
    collect(item, used);
  }
}

}  // namespace

Result<ChatMarker> ChatMarker::choose(const AddedTokenMatcher& matcher,
                                      const jinja::Dict& variables, std::string_view source) {
  UsedMarks used;
  collect(source, used);
  for (const auto& [key, value] : variables.entries()) collect(value, used);
  char32_t mark = kFirstMark;
  while (mark > kLastMark && used.test(mark - kLastMark)) --mark;
  if (used.test(mark - kLastMark)) {
    return invalid_argument("the conversation uses every private character, U+E000 to U+F8FF");
  }
  ChatMarker marker;
  marker.matcher_ = &matcher;
  jinja::append_utf8(marker.mark_, mark);
  return marker;
}

std::string ChatMarker::mark(std::string_view text) const {
  if (matcher_ == nullptr) return std::string(text);
  std::string out;
  size_t position = 0;
  while (position < text.size()) {
    const AddedTokenMatcher::Match match = matcher_->find(text, position);
    if (match.begin == match.end) break;
    const size_t after_first = match.begin + jinja::code_point_bytes(text[match.begin]);
    out += text.substr(position, after_first - position);
    out += mark_;
    position = after_first;
  }
  out += text.substr(position);
  return out;
}

jinja::Value ChatMarker::mark(const jinja::Value& value) const {
  if (matcher_ == nullptr) return value;
  if (value.is(jinja::Kind::kString)) return jinja::Value::string(mark(value.as_string()));
  if (value.is(jinja::Kind::kList)) {
    std::vector<jinja::Value> items;
    for (const jinja::Value& item : value.as_sequence().items) items.push_back(mark(item));
    return jinja::Value::list(std::move(items));
  }
  if (!value.is(jinja::Kind::kDict)) return value;
  jinja::Dict dict;
  for (const auto& [key, item] : value.as_dict().entries()) dict.set(mark(key), mark(item));
  return jinja::Value::dict(std::move(dict));
}

std::string ChatMarker::unmark(std::string_view text) const {
  if (mark_.empty()) return std::string(text);
  std::string out;
  while (true) {
    const size_t found = text.find(mark_);
    out += text.substr(0, found);
    if (found == std::string_view::npos) return out;
    text.remove_prefix(found + mark_.size());
  }
}

}  // namespace nibble
