// Truth, equality, order, walking and indexing; arithmetic and printing are in
// jinja_arithmetic.cpp.
#include "nibble/tokenizer/jinja_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

// The names dir() gives for Python's types, in which attribute access finds them before keys.
constexpr std::string_view kDictMethods =
    " clear copy fromkeys get items keys pop popitem setdefault update values ";
constexpr std::string_view kListMethods =
    " append clear copy count extend index insert pop remove reverse sort ";
constexpr std::string_view kTupleMethods = " count index ";
constexpr std::string_view kStringMethods =
    " capitalize casefold center count encode endswith expandtabs find format format_map index "
    "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace "
    "istitle isupper join ljust lower lstrip maketrans partition removeprefix removesuffix replace "
    "rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title "
    "translate upper zfill ";

bool has_method(const Value& value, std::string_view name) {
  const std::string padded = fmt::format(" {} ", name);
  const auto in = [&padded](std::string_view names) {
    return names.find(padded) != std::string_view::npos;
  };
  switch (value.kind()) {
    case Kind::kDict:
      return in(kDictMethods);
    case Kind::kList:
      return in(kListMethods);
    case Kind::kTuple:
      return in(kTupleMethods);
    case Kind::kString:
      return in(kStringMethods);
    default:
      return false;
  }
}

Value missing(const Value& value, std::string_view name) {
  return Value::undefined(fmt::format("{} has no element '{}'", type_name(value), name));
}

// Orders an integer and a float exactly: a long double holds every int64 (checked below).
static_assert(std::numeric_limits<long double>::digits >= 64);
long double exact(const Value& number) {
  return number.is(Kind::kFloat) ? static_cast<long double>(number.as_float())
                                 : static_cast<long double>(number.as_integer());
}

// Both of one family: list with list, tuple with tuple.
bool same_family(const Value& left, const Value& right) {
  return left.kind() == right.kind() && (left.is(Kind::kList) || left.is(Kind::kTuple));
}

bool hashable(const Value& value) {
  if (value.is(Kind::kList) || value.is(Kind::kDict)) return false;
  if (!value.is(Kind::kTuple)) return true;
  const auto& items = value.as_sequence().items;
  return std::all_of(items.begin(), items.end(), hashable);
}

std::string_view code_point_at(std::string_view text, size_t index) {
  size_t position = 0;
  while (index-- > 0) position += code_point_bytes(text[position]);
  return text.substr(position, code_point_bytes(text[position]));
}

// Python's slice.indices(size) for a given step: the first index and how many follow.
struct Range {
  int64_t start;
  int64_t count;
};

Range slice_range(int64_t size, std::optional<int64_t> start, std::optional<int64_t> stop,
                  int64_t step) {
  const int64_t lowest = step < 0 ? -1 : 0;
  const int64_t highest = step < 0 ? size - 1 : size;
  const auto clamp = [&](int64_t index) {
    if (index < 0) index = index < -size ? lowest : index + size;
    return std::clamp(index, lowest, std::max(lowest, highest));
  };
  const int64_t first = start ? clamp(*start) : (step < 0 ? highest : lowest);
  const int64_t last = stop ? clamp(*stop) : (step < 0 ? lowest : highest);
  if (step > 0) return {first, first < last ? (last - first - 1) / step + 1 : 0};
  // -(step + 1) + 1 instead of -step, which overflows for the smallest integer.
  return {first,
          first > last ? (first - last - 1) / (step == INT64_MIN ? INT64_MAX : -step) + 1 : 0};
}

}  // namespace

bool truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.as_bool();
    case Kind::kInt:
      return value.as_integer() != 0;
    case Kind::kFloat:
      return value.as_float() != 0;
    case Kind::kString:
      return !value.as_string().empty();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
      return !value.as_sequence().items.empty();
    case Kind::kDict:
      return !value.as_dict().entries().empty();
    default:
      return true;
  }
}

Result<bool> equal(const Value& left, const Value& right, Budget& budget) {
  NIBBLE_TRY(budget.spend_steps(1));
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) return left.as_integer() == right.as_integer();
    return exact(left) == exact(right);
  }
  if (left.is(Kind::kUndefined) && right.is(Kind::kUndefined)) return true;
  if (left.is(Kind::kString) && right.is(Kind::kString)) {
    NIBBLE_TRY(budget.look_at(left.as_string().size()));
    return left.as_string() == right.as_string();
  }
  if (same_family(left, right)) {
    const auto& a = left.as_sequence().items;
    const auto& b = right.as_sequence().items;
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      if (!NIBBLE_TRY(equal(a[i], b[i], budget))) return false;
    }
    return true;
  }
  if (left.is(Kind::kDict) && right.is(Kind::kDict)) {
    if (left.as_dict().entries().size() != right.as_dict().entries().size()) return false;
    for (const auto& [key, value] : left.as_dict().entries()) {
      const Value* other = right.as_dict().find(key);
      if (other == nullptr || !NIBBLE_TRY(equal(value, *other, budget))) return false;
    }
    return true;
  }
  if (left.is(Kind::kView) || left.is(Kind::kGenerator) || left.is(Kind::kOpaque)) {
    return unsupported(fmt::format("comparing a {} is not supported", type_name(left)));
  }
  return left.same_object(right);
}

Result<bool> less(const Value& left, const Value& right, Budget& budget) {
  NIBBLE_TRY(budget.spend_steps(1));
  for (const Value* value : {&left, &right}) {
    if (value->is(Kind::kUndefined)) return invalid_argument(value->why_undefined());
  }
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) return left.as_integer() < right.as_integer();
    return exact(left) < exact(right);
  }
  if (left.is(Kind::kString) && right.is(Kind::kString)) {
    // UTF-8 keeps the order of code points when its bytes are compared as unsigned, as they are.
    NIBBLE_TRY(budget.look_at(left.as_string().size()));
    return left.as_string() < right.as_string();
  }
  if (same_family(left, right)) {
    const auto& a = left.as_sequence().items;
    const auto& b = right.as_sequence().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!NIBBLE_TRY(equal(a[i], b[i], budget))) return less(a[i], b[i], budget);
    }
    return a.size() < b.size();
  }
  return invalid_argument(
      fmt::format("a {} and a {} have no order", type_name(left), type_name(right)));
}

Result<bool> contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is(Kind::kString)) {
    if (!item.is(Kind::kString)) {
      return invalid_argument(
          fmt::format("'in' a str needs a str on its left, found {}", type_name(item)));
    }
    NIBBLE_TRY(budget.look_at(container.as_string().size()));
    return find_text(container.as_string(), item.as_string()) != std::string::npos;
  }
  if (container.is(Kind::kDict)) {
    if (!hashable(item)) {
      return invalid_argument(fmt::format("a {} can't be a key", type_name(item)));
    }
    return item.is(Kind::kString) && container.as_dict().find(item.as_string()) != nullptr;
  }
  if (container.is(Kind::kGenerator)) {  // takes what it looks at, as Python does
    Sequence& generator = container.as_sequence();
    while (generator.position < generator.items.size()) {
      if (NIBBLE_TRY(equal(generator.items[generator.position++], item, budget))) return true;
    }
    return false;
  }
  if (container.is_sequence()) {
    for (const Value& element : container.as_sequence().items) {
      if (NIBBLE_TRY(equal(element, item, budget))) return true;
    }
    return false;
  }
  if (container.is(Kind::kUndefined)) return false;
  return invalid_argument(
      fmt::format("'in' needs a str, list or dict on its right, found {}", type_name(container)));
}

Result<std::vector<Value>> iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      break;
    case Kind::kString: {
      const std::string& text = value.as_string();
      NIBBLE_TRY(budget.spend_bytes(text.size() * sizeof(Value)));
      for (size_t i = 0; i < text.size();) {
        const size_t size = code_point_bytes(text[i]);
        items.push_back(Value::string(text.substr(i, size)));
        i += size;
      }
      break;
    }
    case Kind::kDict:
      for (const auto& [key, unused] : value.as_dict().entries()) {
        NIBBLE_TRY(budget.spend_bytes(key.size() + sizeof(Value)));
        items.push_back(Value::string(key));
      }
      break;
    case Kind::kGenerator: {
      Sequence& generator = value.as_sequence();
      items.assign(generator.items.begin() + static_cast<std::ptrdiff_t>(generator.position),
                   generator.items.end());
      generator.position = generator.items.size();
      break;
    }
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
      NIBBLE_TRY(budget.spend_bytes(value.as_sequence().items.size() * sizeof(Value)));
      items = value.as_sequence().items;
      break;
    default:
      return invalid_argument(fmt::format("a {} has no items to walk", type_name(value)));
  }
  NIBBLE_TRY(budget.spend_steps(items.size()));
  return items;
}

Result<int64_t> length(const Value& value, Budget& budget) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      NIBBLE_TRY(budget.look_at(value.as_string().size()));
      return static_cast<int64_t>(count_code_points(value.as_string()));
    case Kind::kDict:
      return static_cast<int64_t>(value.as_dict().entries().size());
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
      return static_cast<int64_t>(value.as_sequence().items.size());
    default:
      return invalid_argument(fmt::format("a {} has no length", type_name(value)));
  }
}

Result<Value> get_attribute(const Value& value, std::string_view name) {
  if (value.is(Kind::kUndefined)) return invalid_argument(value.why_undefined());
  if (has_method(value, name)) return Value::opaque("a method that is not called");
  const Value* found = nullptr;
  if (value.is(Kind::kDict)) found = value.as_dict().find(name);
  if (value.is(Kind::kNamespace)) found = value.as_namespace().attributes.find(name);
  return found != nullptr ? *found : missing(value, name);
}

Result<Value> get_item(const Value& value, const Value& key, Budget& budget) {
  if (value.is(Kind::kUndefined)) return invalid_argument(value.why_undefined());
  if (key.is(Kind::kString)) {
    if (value.is(Kind::kDict)) {
      if (const Value* found = value.as_dict().find(key.as_string())) return *found;
    }
    return get_attribute(value, key.as_string());
  }
  if (value.is(Kind::kView) && key.is_integral()) {
    return unsupported(
        "an index into a range or into the keys, values or items of a mapping is "
        "not supported; make a list of it first");
  }
  const bool indexed = value.is(Kind::kString) || value.is(Kind::kList) || value.is(Kind::kTuple);
  if (!indexed || !key.is_integral()) return missing(value, "of that key");
  const int64_t size = NIBBLE_TRY(length(value, budget));
  const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
  if (index < 0 || index >= size) return missing(value, std::to_string(key.as_integer()));
  const auto at = static_cast<size_t>(index);
  if (!value.is(Kind::kString)) return value.as_sequence().items[at];
  return Value::string(std::string(code_point_at(value.as_string(), at)));
}

Result<Value> get_slice(const Value& value, const Value& start, const Value& stop,
                        const Value& step, Budget& budget) {
  if (value.is(Kind::kUndefined)) return invalid_argument(value.why_undefined());
  if (!value.is(Kind::kString) && !value.is(Kind::kList) && !value.is(Kind::kTuple)) {
    return invalid_argument(fmt::format("a {} has no slices", type_name(value)));
  }
  std::array<std::optional<int64_t>, 3> parts;
  const Value* const given[] = {&start, &stop, &step};
  for (size_t i = 0; i < 3; ++i) {
    if (given[i]->is(Kind::kNone)) continue;
    if (!given[i]->is_integral()) {
      return invalid_argument(
          fmt::format("the parts of a slice are int or none, found {}", type_name(*given[i])));
    }
    parts[i] = given[i]->as_integer();
  }
  const int64_t stride = parts[2].value_or(1);
  if (stride == 0) return invalid_argument("the step of a slice is 0");
  const int64_t size = NIBBLE_TRY(length(value, budget));
  const Range range = slice_range(size, parts[0], parts[1], stride);
  // With one element the stride is not used, and with more it is smaller than the size.
  const auto at = [&](int64_t i) { return static_cast<size_t>(range.start + i * stride); };

  if (!value.is(Kind::kString)) {
    NIBBLE_TRY(budget.spend_steps(static_cast<size_t>(range.count)));
    std::vector<Value> items;
    for (int64_t i = 0; i < range.count; ++i) items.push_back(value.as_sequence().items[at(i)]);
    return make_sequence(value.kind(), std::move(items), budget);
  }
  const std::string& text = value.as_string();
  NIBBLE_TRY(budget.spend_bytes(text.size() * sizeof(size_t)));
  std::vector<size_t> offsets;  // of every code point, and the end
  for (size_t i = 0; i < text.size(); i += code_point_bytes(text[i])) offsets.push_back(i);
  offsets.push_back(text.size());
  std::string out;
  if (stride == 1 && range.count > 0) {
    const size_t begin = offsets[at(0)];
    out = text.substr(begin, offsets[at(range.count - 1) + 1] - begin);
  } else {
    for (int64_t i = 0; i < range.count; ++i) {
      out.append(text, offsets[at(i)], offsets[at(i) + 1] - offsets[at(i)]);
    }
  }
  return make_string(std::move(out), budget);
}

Result<Value> make_sequence(Kind kind, std::vector<Value> items, Budget& budget) {
  NIBBLE_TRY(budget.spend_bytes(sizeof(Sequence) + items.size() * sizeof(Value)));
  Value value = Value::sequence(kind, std::move(items));
  if (value.depth() > kMaxValueDepth) {
    return invalid_argument(fmt::format("lists nest deeper than {}", kMaxValueDepth));
  }
  return value;
}

Result<Value> make_dict(Dict dict, Budget& budget) {
  NIBBLE_TRY(budget.spend_bytes(sizeof(Dict) + dict.entries().size() * 4 * sizeof(Value)));
  if (dict.depth() > kMaxValueDepth) {
    return invalid_argument(fmt::format("mappings nest deeper than {}", kMaxValueDepth));
  }
  return Value::dict(std::move(dict));
}

Result<Value> make_string(std::string text, Budget& budget) {
  NIBBLE_TRY(budget.spend_bytes(text.size()));
  return Value::string(std::move(text));
}

}  // namespace nibble::jinja
