// Programs against their tests: LiveCodeBench and SciCode.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/eval/sandbox.h"

namespace nibble {

struct CodeScore {
  std::string outcome;         // "correct", "wrong", "sandbox_error"
  std::string detail;          // "test 2: time", "test 1: wrong", ...
  bool is_near_limit = false;  // a test took more than 80 % of its time
};

// One process for each test; expected outputs never enter the sandbox; the first failure ends it.
// `tests` is EvalItem::tests of a code task. Errors: kUnsupported without a sandbox, kCancelled.
Result<CodeScore> score_code(std::string_view program, std::string_view tests,
                             SandboxLevel level = SandboxLevel::kBubblewrap);

// Program and tests in one process; it passes when they end without an error. `earlier` is the code
// of the problem's earlier steps.
Result<CodeScore> score_scicode(std::string_view program, std::string_view earlier,
                                std::string_view tests,
                                SandboxLevel level = SandboxLevel::kBubblewrap);

// Whether two outputs are the same: lines trimmed, equal as texts or token by token as decimals.
bool same_output(std::string_view expected, std::string_view found);

// Whether two JSON values are the same, with tuples as lists: 1 and 1.0 are, 1 and true are not.
bool same_json(std::string_view expected, std::string_view found);

}  // namespace nibble
