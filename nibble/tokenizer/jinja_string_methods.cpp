#include "nibble/tokenizer/jinja_string_methods.h"

#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

// str.split() without a separator: no empty parts, and the last part keeps its inner whitespace.
std::vector<std::string_view> split_at_whitespace(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> parts;
  text = strip_left(text);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      parts.push_back(strip_right(text));
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t next = end;
      if (is_space(next_code_point(text, &next))) break;
      end = next;
    }
    parts.push_back(text.substr(0, end));
    text = strip_left(text.substr(end));
  }
  return parts;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator,
                                       int64_t max_splits) {
  std::vector<std::string_view> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t end = find_text(text, separator);
    if (end == std::string_view::npos) break;
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + separator.size());
  }
  parts.push_back(text);
  return parts;
}

}  // namespace

Result<Value> split_text(std::string_view text, const std::string* separator, int64_t max_splits,
                         Budget& budget) {
  NIBBLE_TRY(budget.look_at(text.size()));
  NIBBLE_TRY(budget.spend_bytes(text.size()));
  const std::vector<std::string_view> parts = separator == nullptr
                                                  ? split_at_whitespace(text, max_splits)
                                                  : split_at(text, *separator, max_splits);
  NIBBLE_TRY(budget.spend_steps(parts.size()));
  std::vector<Value> values;
  for (const std::string_view part : parts) values.push_back(Value::string(std::string(part)));
  return make_sequence(Kind::kList, std::move(values), budget);
}

Result<Value> replace_text(std::string_view text, std::string_view old, std::string_view with,
                           int64_t count, Budget& budget) {
  NIBBLE_TRY(budget.look_at(text.size()));
  std::string out;
  size_t position = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t found = find_text(text, old, position);
    if (found == std::string_view::npos) break;
    NIBBLE_TRY(budget.spend_bytes(with.size()));
    NIBBLE_TRY(budget.spend_steps(1));
    out += text.substr(position, found - position);
    out += with;
    position = found + old.size();
    if (old.empty()) {  // before each character and at the end
      if (position == text.size()) return make_string(std::move(out), budget);
      const size_t size = code_point_bytes(text[position]);
      out += text.substr(position, size);
      position += size;
    }
  }
  out += text.substr(position);
  return make_string(std::move(out), budget);
}

Result<Value> dict_items(const Dict& dict, Kind kind, Budget& budget) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict.entries()) {
    NIBBLE_TRY(budget.spend_steps(1));
    NIBBLE_TRY(budget.spend_bytes(key.size()));
    std::vector<Value> pair = {Value::string(key), value};
    pairs.push_back(NIBBLE_TRY(make_sequence(Kind::kTuple, std::move(pair), budget)));
  }
  return make_sequence(kind, std::move(pairs), budget);
}

}  // namespace nibble::jinja
