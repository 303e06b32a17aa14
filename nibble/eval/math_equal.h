// Whether two answers are the same mathematics. Source of every rule: the evaluation specification,
// section 5; cases in tests/eval/data.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

enum class MathVerdict { kEqual, kUnequal, kUndecided };  // undecided: a side was not understood

// `gold` and `answer` are raw LaTeX, already out of their boxes. Either may be anything at all.
MathVerdict math_equal(std::string_view gold, std::string_view answer);

// One spelling for what has several: math marks, \left, \dfrac, thin spaces, degree signs, dollar
// signs gone; \cdot and \times as '*'. \text and its like all become \text.
std::string normalize_math(std::string_view text);

}  // namespace nibble
