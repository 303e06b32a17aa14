#include "nibble/eval/math_expression.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "nibble/eval/math_node.h"

namespace nibble {

struct MathExpression::State {
  Node root;
  std::optional<boost::multiprecision::cpp_rational> exact;
};

namespace {

using Rational = boost::multiprecision::cpp_rational;
using Complex = std::complex<double>;
using Node = MathExpression::Node;
using Op = MathOp;
using Function = MathFunction;

// Above the 64 of the specification: 2^{100} has to differ from its neighbours. Bits bound the
// work.
constexpr int kMaxExactExponent = 1024;
constexpr unsigned kMaxExactBits = 20'000;  // of a numerator or denominator

bool is_small(const Rational& value) {
  const auto fits = [](const boost::multiprecision::cpp_int& n) {
    return n == 0 || msb(abs(n)) < kMaxExactBits;
  };
  return fits(numerator(value)) && fits(denominator(value));
}

std::optional<Rational> exact_power(const Rational& base, const Rational& exponent) {
  if (denominator(exponent) != 1 || abs(numerator(exponent)) > kMaxExactExponent) {
    return std::nullopt;
  }
  const int n = static_cast<int>(numerator(exponent));
  if (base == 0 && n <= 0) return std::nullopt;
  Rational result = 1;
  for (int i = 0; i < std::abs(n); ++i) {
    result *= base;
    if (!is_small(result)) return std::nullopt;
  }
  return n < 0 ? 1 / result : result;
}

std::optional<Rational> exact(const Node& node) {
  std::vector<Rational> parts;
  if (node.op == Op::kVariable || node.op == Op::kConstant || node.op == Op::kFunction) {
    return std::nullopt;
  }
  for (const Node& child : node.children) {
    auto part = exact(child);
    if (!part || !is_small(*part)) return std::nullopt;
    parts.push_back(*std::move(part));
  }
  switch (node.op) {
    case Op::kNumber:
      return node.number;
    case Op::kAdd:
      return Rational(parts[0] + parts[1]);
    case Op::kMultiply:
      return Rational(parts[0] * parts[1]);
    case Op::kDivide:
      if (parts[1] == 0) return std::nullopt;
      return Rational(parts[0] / parts[1]);
    case Op::kNegate:
      return Rational(-parts[0]);
    case Op::kPower:
      return exact_power(parts[0], parts[1]);
    case Op::kFactorial: {
      if (denominator(parts[0]) != 1 || parts[0] < 0 || parts[0] > 1000) return std::nullopt;
      Rational result = 1;
      for (int i = 2; i <= static_cast<int>(numerator(parts[0])); ++i) result *= i;
      return result;
    }
    default:
      return std::nullopt;
  }
}

// A rational between -3 and 3 that depends on name and point alone (splitmix64).
double variable_value(const std::string& name, int point) {
  uint64_t x = 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(point + 1);
  for (const char c : name) x = (x ^ static_cast<unsigned char>(c)) * 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 30;
  x *= 0x94d049bb133111ebULL;
  x ^= x >> 31;
  const auto step = static_cast<double>(x % 3001);
  return (step - 1500.25) / 500.0;
}

Complex apply_function(Function function, const std::vector<Complex>& x) {
  switch (function) {
    case Function::kSqrt:
      return std::sqrt(x[0]);
    case Function::kSin:
      return std::sin(x[0]);
    case Function::kCos:
      return std::cos(x[0]);
    case Function::kTan:
      return std::tan(x[0]);
    case Function::kLn:
      return std::log(x[0]);
    case Function::kLog10:
      return std::log10(x[0]);
    case Function::kExp:
      return std::exp(x[0]);
    case Function::kAbs:
      return std::abs(x[0]);
    case Function::kAsin:
      return std::asin(x[0]);
    case Function::kAcos:
      return std::acos(x[0]);
    case Function::kAtan:
      return std::atan(x[0]);
    case Function::kBinomial:
      return std::exp(std::lgamma(x[0].real() + 1) - std::lgamma(x[1].real() + 1) -
                      std::lgamma(x[0].real() - x[1].real() + 1));
  }
  return {};
}

std::optional<Complex> evaluate(const Node& node, int point) {
  std::vector<Complex> x;
  for (const Node& child : node.children) {
    const auto part = evaluate(child, point);
    if (!part) return std::nullopt;
    x.push_back(*part);
  }
  Complex result;
  switch (node.op) {
    case Op::kNumber:
      result = node.number.convert_to<double>();
      break;
    case Op::kVariable:
      result = variable_value(node.name, point);
      break;
    case Op::kConstant:
      result = node.constant;
      break;
    case Op::kAdd:
      result = x[0] + x[1];
      break;
    case Op::kMultiply:
      result = x[0] * x[1];
      break;
    case Op::kDivide:
      if (std::abs(x[1]) < 1e-12) return std::nullopt;
      result = x[0] / x[1];
      break;
    case Op::kNegate:
      result = -x[0];
      break;
    case Op::kPower: {
      const double n = x[1].real();
      const bool whole = x[1].imag() == 0 && n == std::round(n) && std::abs(n) <= 64;
      result = whole ? std::pow(x[0], static_cast<int>(n)) : std::pow(x[0], x[1]);
      break;
    }
    case Op::kFactorial:
      if (x[0].imag() != 0) return std::nullopt;
      result = std::tgamma(x[0].real() + 1);
      break;
    case Op::kFunction:
      result = apply_function(node.function, x);
      break;
  }
  if (!std::isfinite(result.real()) || !std::isfinite(result.imag())) return std::nullopt;
  return result;
}

}  // namespace

std::optional<MathExpression> MathExpression::parse(std::string_view text) {
  auto root = parse_math(text);
  if (!root) return std::nullopt;
  auto state = std::make_unique<State>();
  state->exact = exact(*root);
  state->root = *std::move(root);
  return MathExpression(std::move(state));
}

MathExpression::MathExpression(std::unique_ptr<State> state) : state_(std::move(state)) {}
MathExpression::MathExpression(MathExpression&&) noexcept = default;
MathExpression& MathExpression::operator=(MathExpression&&) noexcept = default;
MathExpression::~MathExpression() = default;

bool MathExpression::is_rational() const { return state_->exact.has_value(); }

bool MathExpression::equals_exactly(const MathExpression& other) const {
  return state_->exact && other.state_->exact && *state_->exact == *other.state_->exact;
}

std::optional<std::complex<double>> MathExpression::value(int point) const {
  return evaluate(state_->root, point);
}

}  // namespace nibble
