// The tree that math_parser.cpp makes and math_expression.cpp computes.
#pragma once

#include <boost/multiprecision/cpp_int.hpp>
#include <complex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/eval/math_expression.h"

namespace nibble {

enum class MathOp {
  kNumber,
  kVariable,
  kConstant,
  kAdd,
  kMultiply,
  kDivide,
  kPower,
  kNegate,
  kFactorial,
  kFunction
};
enum class MathFunction {
  kSqrt,
  kSin,
  kCos,
  kTan,
  kLn,
  kLog10,
  kExp,
  kAbs,
  kBinomial,
  kAsin,
  kAcos,
  kAtan
};

struct MathExpression::Node {
  MathOp op = MathOp::kNumber;
  boost::multiprecision::cpp_rational number;
  std::string name;  // of a variable
  std::complex<double> constant;
  MathFunction function = MathFunction::kSqrt;
  std::vector<Node> children;
};

// As MathExpression::parse says.
std::optional<MathExpression::Node> parse_math(std::string_view text);

}  // namespace nibble
