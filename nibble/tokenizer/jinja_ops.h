// Python's operators on template values: truth, equality, order, arithmetic, indexing, printing.
//
// Everything that can take long or make something spends from a Budget. Type errors are
// kInvalidArgument and name the types, as Python's TypeError does.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_limits.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

bool truthy(const Value& value);

// left == right. Values of different types are unequal, except that 1 == 1.0 == True.
Result<bool> equal(const Value& left, const Value& right, Budget& budget);

// left < right for numbers, strings, and lists or tuples of such.
Result<bool> less(const Value& left, const Value& right, Budget& budget);

// item in container: a part of a string, an element, a key.
Result<bool> contains(const Value& container, const Value& item, Budget& budget);

// op is one of + - * / // %
Result<Value> arithmetic(std::string_view op, const Value& left, const Value& right,
                         Budget& budget);
Result<Value> negate(const Value& value);

// str(value), as {{ value }} prints it, appended to out.
Status append_text(const Value& value, Budget& budget, std::string& out);
Result<std::string> to_text(const Value& value, Budget& budget);

// Python's repr of a float: "1.0", "1e+16", "nan".
std::string float_text(double value);

// The items a for walks: characters, elements, keys; nothing of what is undefined.
Result<std::vector<Value>> iterate(const Value& value, Budget& budget);

// len(value).
Result<int64_t> length(const Value& value, Budget& budget);

// value[key]: undefined when there is none, as in Jinja; an error when value is undefined itself.
Result<Value> get_item(const Value& value, const Value& key, Budget& budget);

// value.name: what Python has as a method comes first, then the key of a mapping.
Result<Value> get_attribute(const Value& value, std::string_view name);

// value[start:stop:step] of a string, list or tuple; none stands for an absent part.
Result<Value> get_slice(const Value& value, const Value& start, const Value& stop,
                        const Value& step, Budget& budget);

// Value::sequence and Value::dict with the limits on size and nesting.
Result<Value> make_sequence(Kind kind, std::vector<Value> items, Budget& budget);
Result<Value> make_dict(Dict dict, Budget& budget);
Result<Value> make_string(std::string text, Budget& budget);

}  // namespace nibble::jinja
