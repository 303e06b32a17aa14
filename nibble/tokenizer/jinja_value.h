// The values of a Jinja template: Python's, as far as chat templates use them.
//
// Lists, tuples and mappings never change once made, so that nothing can contain itself; namespaces
// are the one thing that changes, and belong to the running template (see jinja_eval.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::jinja {

struct Sequence;
class Dict;
struct Namespace;
struct Macro;
struct Loop;

enum class Kind {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kView,       // dict.items(), .keys(), .values(): has a length, takes no index
  kGenerator,  // map, selectattr, items: always true, no length, can be walked once
  kDict,
  kNamespace,
  kMacro,
  kLoop,
  kOpaque,  // a function or method that is named without being called
};

// How deep lists and mappings may nest: bounds the recursion of everything that walks one.
inline constexpr int kMaxValueDepth = 100;

class Value {
 public:
  // Undefined; printing it gives nothing. `why` is what an error about it says.
  Value() = default;
  static Value undefined(std::string why);
  static Value none() { return Value(Storage(None{})); }
  static Value boolean(bool value) { return Value(Storage(value)); }
  static Value integer(int64_t value) { return Value(Storage(value)); }
  static Value real(double value) { return Value(Storage(value)); }
  static Value string(std::string value);
  static Value opaque(std::string_view name) { return Value(Storage(Opaque{name})); }
  static Value space(Namespace* value) { return Value(Storage(value)); }
  static Value macro(const Macro* value) { return Value(Storage(value)); }
  static Value loop(std::shared_ptr<Loop> value) { return Value(Storage(std::move(value))); }
  static Value dict(Dict value);

  // kList, kTuple, kView or kGenerator of the items.
  static Value sequence(Kind kind, std::vector<Value> items);
  static Value list(std::vector<Value> items) { return sequence(Kind::kList, std::move(items)); }

  Kind kind() const;
  bool is(Kind wanted) const { return kind() == wanted; }
  bool is_sequence() const { return std::holds_alternative<std::shared_ptr<Sequence>>(storage_); }
  bool is_number() const { return is(Kind::kBool) || is(Kind::kInt) || is(Kind::kFloat); }
  // An int for Python: True and False are 1 and 0.
  bool is_integral() const { return is(Kind::kBool) || is(Kind::kInt); }

  // Each needs its kind.
  const std::string& as_string() const {
    return *std::get<std::shared_ptr<const std::string>>(storage_);
  }
  bool as_bool() const { return std::get<bool>(storage_); }
  double as_float() const { return std::get<double>(storage_); }
  Sequence& as_sequence() const { return *std::get<std::shared_ptr<Sequence>>(storage_); }
  const Dict& as_dict() const { return *std::get<std::shared_ptr<const Dict>>(storage_); }
  Namespace& as_namespace() const { return *std::get<Namespace*>(storage_); }
  const Macro& as_macro() const { return *std::get<const Macro*>(storage_); }
  Loop& as_loop() const { return *std::get<std::shared_ptr<Loop>>(storage_); }
  std::string_view as_opaque() const { return std::get<Opaque>(storage_).name; }
  // is_integral() and is_number().
  int64_t as_integer() const;
  double as_double() const;

  // The same object, as Python's `is` on None, booleans, namespaces, macros.
  bool same_object(const Value& other) const;

  // "'messages' is undefined": what an error says when this undefined value is used.
  std::string why_undefined() const;

  // How deep this value nests: 0 for what is neither list nor mapping.
  int depth() const;

 private:
  struct Undefined {
    std::shared_ptr<const std::string> why;
  };
  struct None {};
  struct Opaque {
    std::string_view name;
  };
  using Storage =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                   std::shared_ptr<Sequence>, std::shared_ptr<const Dict>, Namespace*, const Macro*,
                   std::shared_ptr<Loop>, Opaque>;
  explicit Value(Storage storage) : storage_(std::move(storage)) {}

  Storage storage_;
};

struct Sequence {
  Kind kind = Kind::kList;
  std::vector<Value> items;
  int depth = 1;
  size_t position = 0;  // of a generator: how many items have been taken
};

// A mapping of strings in the order of insertion; setting a key again keeps its place.
class Dict {
 public:
  const Value* find(std::string_view key) const;
  void set(std::string key, Value value);
  const std::vector<std::pair<std::string, Value>>& entries() const { return entries_; }
  int depth() const { return depth_; }

 private:
  size_t index_of(std::string_view key) const;  // entries_.size() when there is none

  std::vector<std::pair<std::string, Value>> entries_;
  std::unordered_map<std::string, size_t> index_;  // filled only when there are many entries
  int depth_ = 1;
};

struct Namespace {
  Dict attributes;
};

// "str", "list", "dict", "int": Python's name of the value's type.
std::string_view type_name(const Value& value);

}  // namespace nibble::jinja
