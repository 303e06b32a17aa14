// A model that is asked whether two answers to a mathematical question are the same.
#pragma once

#include "nibble/base/result.h"
#include "nibble/eval/run.h"
#include "nibble/eval/target.h"

namespace nibble {

// Asks about an answer that the rules found unequal or could not decide; leaves others alone. A
// clear "yes" makes it correct, a clear "no" wrong, anything else changes nothing; score->judge
// tells. Errors: those of the target.
Status judge_answer(CompletionTarget& judge, Score* score);

}  // namespace nibble
