// The LaTeX of an answer as an expression that can be computed: exactly when it is rational, and in
// complex numbers with values for its variables.
#pragma once

#include <complex>
#include <memory>
#include <optional>
#include <string_view>

namespace nibble {

class MathExpression {
 public:
  // Nothing for what is not understood, for more than 10,000 nodes and for nesting beyond 200.
  // Takes text that normalize_math() gave: + - * / ^ ! implicit products, \frac, \sqrt[n], \binom,
  // \pi, \infty, |x|, sin cos tan ln log exp, i, e, variables of one letter with an optional index,
  // mixed numbers (an integer directly before a numeric fraction is a sum).
  static std::optional<MathExpression> parse(std::string_view text);

  MathExpression(MathExpression&&) noexcept;
  MathExpression& operator=(MathExpression&&) noexcept;
  ~MathExpression();

  // Whether the value is a rational number that exact arithmetic reaches: + - * / and whole powers
  // up to 1024.
  bool is_rational() const;

  // Whether both are rational and equal.
  bool equals_exactly(const MathExpression& other) const;

  // The value with variables that depend on their name and `point` (0, 1, ...) alone. Nothing where
  // it is undefined.
  std::optional<std::complex<double>> value(int point) const;

  struct Node;

 private:
  struct State;
  explicit MathExpression(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
