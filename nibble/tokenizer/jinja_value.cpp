#include "nibble/tokenizer/jinja_value.h"

#include <algorithm>

#include "nibble/tokenizer/jinja_loop.h"

namespace nibble::jinja {
namespace {

constexpr size_t kIndexedFrom = 16;  // entries; a linear search is faster below

}  // namespace

Value Value::undefined(std::string why) {
  return Value(Storage(Undefined{std::make_shared<const std::string>(std::move(why))}));
}

Value Value::string(std::string value) {
  return Value(Storage(std::make_shared<const std::string>(std::move(value))));
}

Value Value::dict(Dict value) {
  return Value(Storage(std::make_shared<const Dict>(std::move(value))));
}

Value Value::sequence(Kind kind, std::vector<Value> items) {
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  for (const Value& item : items) sequence->depth = std::max(sequence->depth, 1 + item.depth());
  sequence->items = std::move(items);
  return Value(Storage(std::move(sequence)));
}

Kind Value::kind() const {
  constexpr Kind kKinds[] = {Kind::kUndefined, Kind::kNone,   Kind::kBool, Kind::kInt,
                             Kind::kFloat,     Kind::kString, Kind::kList, Kind::kDict,
                             Kind::kNamespace, Kind::kMacro,  Kind::kLoop, Kind::kOpaque};
  const Kind kind = kKinds[storage_.index()];
  return kind == Kind::kList ? as_sequence().kind : kind;
}

int64_t Value::as_integer() const {
  if (const bool* flag = std::get_if<bool>(&storage_)) return *flag ? 1 : 0;
  return std::get<int64_t>(storage_);
}

double Value::as_double() const {
  if (is(Kind::kFloat)) return as_float();
  return static_cast<double>(as_integer());
}

bool Value::same_object(const Value& other) const {
  if (storage_.index() != other.storage_.index()) return false;
  switch (kind()) {
    case Kind::kNone:
      return true;
    case Kind::kBool:
      return as_bool() == other.as_bool();
    case Kind::kNamespace:
      return &as_namespace() == &other.as_namespace();
    case Kind::kMacro:
      return &as_macro() == &other.as_macro();
    case Kind::kLoop:
      return &as_loop() == &other.as_loop();
    default:
      return false;
  }
}

std::string Value::why_undefined() const {
  const auto& why = std::get<Undefined>(storage_).why;
  return why == nullptr ? "the value is undefined" : *why;
}

int Value::depth() const {
  if (is_sequence()) return as_sequence().depth;
  if (is(Kind::kDict)) return as_dict().depth();
  if (is(Kind::kLoop)) return 1 + as_loop().depth;
  return 0;
}

size_t Dict::index_of(std::string_view key) const {
  if (entries_.size() >= kIndexedFrom) {
    const auto found = index_.find(std::string(key));
    return found == index_.end() ? entries_.size() : found->second;
  }
  size_t i = 0;
  while (i < entries_.size() && entries_[i].first != key) ++i;
  return i;
}

const Value* Dict::find(std::string_view key) const {
  const size_t i = index_of(key);
  return i == entries_.size() ? nullptr : &entries_[i].second;
}

void Dict::set(std::string key, Value value) {
  depth_ = std::max(depth_, 1 + value.depth());
  if (const size_t i = index_of(key); i < entries_.size()) {
    entries_[i].second = std::move(value);
    return;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() < kIndexedFrom) return;
  if (entries_.size() == kIndexedFrom) {
    for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].first, i);
  } else {
    index_.emplace(entries_.back().first, entries_.size() - 1);
  }
}

std::string_view type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kView:
      return "dict view";
    case Kind::kGenerator:
      return "generator";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kMacro:
      return "macro";
    case Kind::kLoop:
      return "loop";
    case Kind::kOpaque:
      return "method";
  }
  return "value";
}

}  // namespace nibble::jinja
