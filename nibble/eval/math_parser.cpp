// Recursive descent over the LaTeX of an answer.
#include <array>
#include <cmath>

#include "nibble/eval/math_node.h"

namespace nibble {
namespace {

using Rational = boost::multiprecision::cpp_rational;
using Complex = std::complex<double>;
using Node = MathExpression::Node;
using Op = MathOp;
using Function = MathFunction;

constexpr int kMaxDepth = 200;
constexpr int kMaxNodes = 10'000;
constexpr size_t kMaxDigits = 400;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Node number_node(Rational value) {
  Node node;
  node.number = std::move(value);
  return node;
}
Node constant_node(Complex value) {
  Node node;
  node.op = Op::kConstant;
  node.constant = value;
  return node;
}
Node op_node(Op op, Node a) {
  Node node;
  node.op = op;
  node.children.push_back(std::move(a));
  return node;
}
Node op_node(Op op, Node a, Node b) {
  Node node = op_node(op, std::move(a));
  node.children.push_back(std::move(b));
  return node;
}
Node function_node(Function function, Node a) {
  Node node = op_node(Op::kFunction, std::move(a));
  node.function = function;
  return node;
}

bool is_numeric(const Node& node) {
  if (node.op == Op::kNegate) return is_numeric(node.children[0]);
  return node.op == Op::kNumber;
}

// "123.45" as a number.
Rational decimal(std::string_view digits) {
  boost::multiprecision::cpp_int numerator = 0, denominator = 1;
  bool fraction = false;
  for (const char c : digits) {
    if (c == '.') {
      fraction = true;
      continue;
    }
    numerator = numerator * 10 + (c - '0');
    if (fraction) denominator *= 10;
  }
  return {numerator, denominator};
}

struct NamedFunction {
  std::string_view name;
  Function function;
};
constexpr std::array<NamedFunction, 9> kFunctions = {{{"sin", Function::kSin},
                                                      {"cos", Function::kCos},
                                                      {"tan", Function::kTan},
                                                      {"ln", Function::kLn},
                                                      {"log", Function::kLog10},
                                                      {"exp", Function::kExp},
                                                      {"arcsin", Function::kAsin},
                                                      {"arccos", Function::kAcos},
                                                      {"arctan", Function::kAtan}}};

// Recursive descent; every function returns nothing on what it does not understand.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::optional<Node> parse() {
    auto node = sum();
    skip_blanks();
    if (!node || at_ != text_.size()) return std::nullopt;
    return node;
  }

 private:
  using Parsed = std::optional<Node>;

  void skip_blanks() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  char peek() {
    skip_blanks();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  // The command at this place, without its backslash: "frac"; empty for none.
  std::string_view command() {
    if (peek() != '\\') return {};
    size_t end = at_ + 1;
    while (end < text_.size() && is_letter(text_[end])) ++end;
    return text_.substr(at_ + 1, end - at_ - 1);
  }
  bool take_command(std::string_view name) {
    if (command() != name) return false;
    at_ += name.size() + 1;
    return true;
  }
  // A name in plain letters, "sqrt" as people type it without a backslash.
  bool take_plain(std::string_view name) {
    skip_blanks();
    if (!text_.substr(at_).starts_with(name)) return false;
    if (at_ + name.size() < text_.size() && is_letter(text_[at_ + name.size()])) return false;
    at_ += name.size();
    return true;
  }
  bool count() { return ++nodes_ <= kMaxNodes; }

  struct Depth {
    explicit Depth(int* depth) : depth_(depth) { ++*depth_; }
    ~Depth() { --*depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    int* depth_;
  };

  Parsed sum() {
    const Depth depth(&depth_);
    if (depth_ > kMaxDepth || !count()) return std::nullopt;
    Parsed left = signed_product();
    while (left) {
      const char c = peek();
      if (c != '+' && c != '-') return left;
      ++at_;
      Parsed right = signed_product();
      if (!right || !count()) return std::nullopt;
      if (c == '-') right = op_node(Op::kNegate, *std::move(right));
      left = op_node(Op::kAdd, *std::move(left), *std::move(right));
    }
    return left;
  }

  Parsed signed_product() {
    bool negative = false;
    while (peek() == '-' || peek() == '+') negative ^= text_[at_++] == '-';
    Parsed node = product();
    if (node && negative) return op_node(Op::kNegate, *std::move(node));
    return node;
  }

  Parsed product() {
    Parsed left = power();
    while (left) {
      if (!count()) return std::nullopt;
      const char c = peek();
      if (c == '*' || c == '/') {
        ++at_;
        bool negative = false;
        while (peek() == '-' || peek() == '+') negative ^= text_[at_++] == '-';
        Parsed right = power();
        if (!right) return std::nullopt;
        if (negative) right = op_node(Op::kNegate, *std::move(right));
        left = op_node(c == '*' ? Op::kMultiply : Op::kDivide, *std::move(left), *std::move(right));
      } else if (starts_factor()) {
        const bool fraction = command() == "frac";
        const bool integer = left->op == Op::kNumber && !was_decimal_;
        Parsed right = power();
        if (!right) return std::nullopt;
        const bool mixed = fraction && integer && right->op == Op::kDivide &&
                           is_numeric(right->children[0]) && is_numeric(right->children[1]);
        left = op_node(mixed ? Op::kAdd : Op::kMultiply, *std::move(left), *std::move(right));
      } else {
        return left;
      }
    }
    return left;
  }

  bool starts_factor() {
    const char c = peek();
    // '|' only closes here: a product with an absolute value needs a sign.
    return is_digit(c) || is_letter(c) || c == '(' || c == '{' || c == '[' || c == '\\' || c == '.';
  }

  Parsed power() {
    Parsed base = primary();
    while (base) {
      if (!count()) return std::nullopt;
      if (take('!')) {
        base = op_node(Op::kFactorial, *std::move(base));
      } else if (take('^')) {
        Parsed exponent = argument();
        if (!exponent) return std::nullopt;
        base = op_node(Op::kPower, *std::move(base), *std::move(exponent));
      } else {
        return base;
      }
    }
    return base;
  }

  // What a command or '^' takes: a group, or one digit, letter or command.
  Parsed argument() {
    const Depth depth(&depth_);
    if (depth_ > kMaxDepth) return std::nullopt;
    const char c = peek();
    if (c == '{') return group('{', '}');
    if (is_digit(c)) {
      ++at_;
      return number_node(Rational(c - '0'));
    }
    if (c == '-') {
      ++at_;
      Parsed node = argument();
      if (!node) return node;
      return op_node(Op::kNegate, *std::move(node));
    }
    return primary();
  }

  Parsed group(char open, char close) {
    if (!take(open)) return std::nullopt;
    Parsed node = sum();
    if (!node || !take(close)) return std::nullopt;
    return node;
  }

  Parsed number() {
    const size_t begin = at_;
    was_decimal_ = false;
    while (at_ < text_.size() && (is_digit(text_[at_]) || (text_[at_] == '.' && !was_decimal_))) {
      was_decimal_ |= text_[at_] == '.';
      ++at_;
    }
    const std::string_view digits = text_.substr(begin, at_ - begin);
    if (digits == "." || digits.size() > kMaxDigits) return std::nullopt;
    return number_node(decimal(digits));
  }

  Parsed primary() {
    const Depth depth(&depth_);
    if (depth_ > kMaxDepth || !count()) return std::nullopt;
    const char c = peek();
    if (is_digit(c) || c == '.') return number();
    if (c == '(') return group('(', ')');
    if (c == '[') return group('[', ']');
    if (c == '{') return group('{', '}');
    if (c == '|') {
      Parsed node = group('|', '|');
      if (!node) return node;
      return function_node(Function::kAbs, *std::move(node));
    }
    if (c == '\\') return from_command();
    if (is_letter(c)) return from_letters();
    return std::nullopt;
  }

  Parsed from_command() {
    if (take_command("frac")) {
      Parsed above = argument();
      if (!above) return std::nullopt;
      Parsed below = argument();
      if (!below) return std::nullopt;
      return op_node(Op::kDivide, *std::move(above), *std::move(below));
    }
    if (take_command("binom")) {
      Parsed above = argument();
      if (!above) return std::nullopt;
      Parsed below = argument();
      if (!below) return std::nullopt;
      Node node = op_node(Op::kFunction, *std::move(above), *std::move(below));
      node.function = Function::kBinomial;
      return node;
    }
    if (take_command("sqrt")) return root();
    if (take_command("pi")) return constant_node(M_PI);
    if (take_command("infty")) return variable("infty");
    for (const NamedFunction& named : kFunctions) {
      if (take_command(named.name)) return apply(named.function);
    }
    // Greek letters and the like are variables.
    const std::string_view name = command();
    for (const std::string_view greek :
         {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "rho", "sigma", "tau",
          "omega", "varphi", "epsilon", "ell"}) {
      if (name != greek) continue;
      at_ += greek.size() + 1;
      return variable(std::string(greek));
    }
    return std::nullopt;
  }

  Parsed root() {
    Parsed index;
    if (peek() == '[') {
      index = group('[', ']');
      if (!index) return std::nullopt;
    }
    Parsed radicand = argument();
    if (!radicand) return std::nullopt;
    if (!index) return function_node(Function::kSqrt, *std::move(radicand));
    Node inverse = op_node(Op::kDivide, number_node(1), *std::move(index));
    return op_node(Op::kPower, *std::move(radicand), std::move(inverse));
  }

  // sin x, sin^2 x, log_2 8, ln(x).
  Parsed apply(Function function) {
    Parsed base, exponent;
    if (function == Function::kLog10 && take('_')) {
      base = argument();
      if (!base) return std::nullopt;
    }
    if (take('^')) {
      exponent = argument();
      if (!exponent) return std::nullopt;
    }
    Parsed operand = power();
    if (!operand) return std::nullopt;
    // "sin 2x" is sin(2x), as long as no further function or bracket begins.
    while (is_digit(peek()) || is_letter(peek()) || command() == "pi") {
      Parsed factor = power();
      if (!factor || !count()) return std::nullopt;
      operand = op_node(Op::kMultiply, *std::move(operand), *std::move(factor));
    }
    Node node = function_node(base ? Function::kLn : function, *std::move(operand));
    if (base) {
      node = op_node(Op::kDivide, std::move(node), function_node(Function::kLn, *std::move(base)));
    }
    if (exponent) node = op_node(Op::kPower, std::move(node), *std::move(exponent));
    return node;
  }

  Parsed from_letters() {
    if (take_plain("sqrt")) {
      Parsed radicand = primary();
      if (!radicand) return std::nullopt;
      return function_node(Function::kSqrt, *std::move(radicand));
    }
    if (take_plain("pi")) return constant_node(M_PI);
    for (const NamedFunction& named : kFunctions) {
      if (take_plain(named.name)) return apply(named.function);
    }
    const char letter = text_[at_++];
    std::string name(1, letter);
    if (peek() == '_') {
      ++at_;
      const size_t begin = at_;
      if (peek() == '{') {
        const size_t end = text_.find('}', at_);
        if (end == std::string_view::npos) return std::nullopt;
        at_ = end + 1;
      } else if (at_ < text_.size()) {
        ++at_;
      }
      for (const char c : text_.substr(begin, at_ - begin)) {
        if (c != '{' && c != '}' && c != ' ') name += c;
      }
    } else if (letter == 'i') {
      return constant_node(Complex(0, 1));
    } else if (letter == 'e') {
      return constant_node(M_E);
    }
    return variable(std::move(name));
  }

  static Node variable(std::string name) {
    Node node;
    node.op = Op::kVariable;
    node.name = std::move(name);
    return node;
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
  int nodes_ = 0;
  bool was_decimal_ = false;  // the number read last has a point
};

}  // namespace

std::optional<MathExpression::Node> parse_math(std::string_view text) {
  return Parser(text).parse();
}

}  // namespace nibble
