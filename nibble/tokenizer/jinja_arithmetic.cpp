// Python's arithmetic and str(): integers of 64 bits, beyond which is an error instead of a bigger
// integer; // and % round down, as in Python and not as in C.
#include <fmt/format.h>

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kExactDouble = int64_t{1} << 53;  // doubles hold every integer up to here

Result<Value> integer_arithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  const auto checked = [&result](bool overflows) -> Result<Value> {
    if (!overflows) return Value::integer(result);
    return unsupported("the result is an integer beyond 64 bits, which is not supported");
  };
  if (op == "+") return checked(__builtin_add_overflow(a, b, &result));
  if (op == "-") return checked(__builtin_sub_overflow(a, b, &result));
  if (op == "*") return checked(__builtin_mul_overflow(a, b, &result));
  if (b == 0) return invalid_argument("division by zero");
  if (op == "/") {
    if (std::max(a, b) > kExactDouble || std::min(a, b) < -kExactDouble) {
      return unsupported("division of integers beyond 2^53 is not supported");
    }
    return Value::real(static_cast<double>(a) / static_cast<double>(b));
  }
  if (b == -1) {  // INT64_MIN / -1 traps
    if (op == "%") return Value::integer(0);
    return checked(__builtin_sub_overflow(int64_t{0}, a, &result));
  }
  const int64_t remainder = a % b;
  const bool fix = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == "//") return Value::integer(a / b - (fix ? 1 : 0));
  return Value::integer(remainder + (fix ? b : 0));
}

// CPython's float_divmod (Objects/floatobject.c).
Result<Value> float_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value::real(a + b);
  if (op == "-") return Value::real(a - b);
  if (op == "*") return Value::real(a * b);
  if (b == 0) return invalid_argument("division by zero");
  if (op == "/") return Value::real(a / b);
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0) {
    if ((b < 0) != (remainder < 0)) {
      remainder += b;
      quotient -= 1;
    }
  } else {
    remainder = std::copysign(0.0, b);
  }
  if (op == "%") return Value::real(remainder);
  if (quotient == 0) return Value::real(std::copysign(0.0, a / b));
  const double floored = std::floor(quotient);
  return Value::real(quotient - floored > 0.5 ? floored + 1 : floored);
}

Result<Value> repeat(const Value& value, int64_t times, Budget& budget) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  const size_t size = value.is(Kind::kString) ? value.as_string().size()
                                              : value.as_sequence().items.size() * sizeof(Value);
  size_t bytes = 0;
  if (__builtin_mul_overflow(size, count, &bytes)) bytes = SIZE_MAX;
  NIBBLE_TRY(budget.spend_bytes(bytes));
  if (value.is(Kind::kString)) {
    std::string out;
    if (size > 0) {
      out.reserve(bytes);
      for (size_t i = 0; i < count; ++i) out += value.as_string();
    }
    return Value::string(std::move(out));
  }
  std::vector<Value> items;
  const auto& once = value.as_sequence().items;
  if (!once.empty()) {
    for (size_t i = 0; i < count; ++i) items.insert(items.end(), once.begin(), once.end());
  }
  return Value::sequence(value.kind(), std::move(items));
}

bool repeats(const Value& value) {
  return value.is(Kind::kString) || value.is(Kind::kList) || value.is(Kind::kTuple);
}

// Python's repr of a str: single quotes unless there are only single quotes inside.
void append_quoted(std::string_view text, std::string& out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out.push_back(quote);
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text, &i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, i - begin);
    } else if (c < 0x100) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      fmt::format_to(std::back_inserter(out), "\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out.push_back(quote);
}

Status append_repr(const Value& value, Budget& budget, std::string& out) {
  NIBBLE_TRY(budget.spend_steps(1));
  if (value.is(Kind::kString)) {
    NIBBLE_TRY(budget.spend_bytes(value.as_string().size()));
    append_quoted(value.as_string(), out);
    return {};
  }
  if (value.is(Kind::kUndefined)) {
    out += "Undefined";
    return {};
  }
  return append_text(value, budget, out);
}

}  // namespace

Result<Value> arithmetic(std::string_view op, const Value& left, const Value& right,
                         Budget& budget) {
  for (const Value* value : {&left, &right}) {
    if (value->is(Kind::kUndefined)) return invalid_argument(value->why_undefined());
  }
  if (left.is_integral() && right.is_integral()) {
    return integer_arithmetic(op, left.as_integer(), right.as_integer());
  }
  if (left.is_number() && right.is_number()) {
    return float_arithmetic(op, left.as_double(), right.as_double());
  }
  if (op == "+" && left.kind() == right.kind()) {
    if (left.is(Kind::kString)) {
      NIBBLE_TRY(budget.spend_bytes(left.as_string().size() + right.as_string().size()));
      return Value::string(left.as_string() + right.as_string());
    }
    if (left.is(Kind::kList) || left.is(Kind::kTuple)) {
      std::vector<Value> items = left.as_sequence().items;
      const auto& tail = right.as_sequence().items;
      items.insert(items.end(), tail.begin(), tail.end());
      return make_sequence(left.kind(), std::move(items), budget);
    }
  }
  if (op == "*" && repeats(left) && right.is_integral()) {
    return repeat(left, right.as_integer(), budget);
  }
  if (op == "*" && left.is_integral() && repeats(right)) {
    return repeat(right, left.as_integer(), budget);
  }
  if (op == "%" && left.is(Kind::kString)) {
    return unsupported("formatting with '%' is not supported; join the parts with '~'");
  }
  return invalid_argument(
      fmt::format("{} {} {} has no meaning", type_name(left), op, type_name(right)));
}

Result<Value> negate(const Value& value) {
  if (value.is(Kind::kUndefined)) return invalid_argument(value.why_undefined());
  if (value.is(Kind::kFloat)) return Value::real(-value.as_float());
  if (value.is_integral()) return integer_arithmetic("-", 0, value.as_integer());
  return invalid_argument(fmt::format("-{} has no meaning", type_name(value)));
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

Status append_text(const Value& value, Budget& budget, std::string& out) {
  NIBBLE_TRY(budget.spend_steps(1));
  switch (value.kind()) {
    case Kind::kUndefined:
      return {};
    case Kind::kNone:
      out += "None";
      return {};
    case Kind::kBool:
      out += value.as_bool() ? "True" : "False";
      return {};
    case Kind::kInt:
      out += std::to_string(value.as_integer());
      return {};
    case Kind::kFloat:
      out += float_text(value.as_float());
      return {};
    case Kind::kString:
      NIBBLE_TRY(budget.spend_bytes(value.as_string().size()));
      out += value.as_string();
      return {};
    case Kind::kList:
    case Kind::kTuple: {
      const bool tuple = value.is(Kind::kTuple);
      const auto& items = value.as_sequence().items;
      out += tuple ? "(" : "[";
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) out += ", ";
        NIBBLE_TRY(append_repr(items[i], budget, out));
      }
      if (tuple && items.size() == 1) out += ",";
      out += tuple ? ")" : "]";
      return {};
    }
    case Kind::kDict: {
      out += "{";
      bool first = true;
      for (const auto& [key, item] : value.as_dict().entries()) {
        if (!std::exchange(first, false)) out += ", ";
        NIBBLE_TRY(budget.spend_bytes(key.size()));
        append_quoted(key, out);
        out += ": ";
        NIBBLE_TRY(append_repr(item, budget, out));
      }
      out += "}";
      return {};
    }
    default:
      return invalid_argument(fmt::format("a {} can't be written as text", type_name(value)));
  }
}

Result<std::string> to_text(const Value& value, Budget& budget) {
  std::string out;
  NIBBLE_TRY(append_text(value, budget, out));
  return out;
}

}  // namespace nibble::jinja
