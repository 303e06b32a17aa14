// The command that would run a plan.
#pragma once

#include "nibble/plan/planner.h"

namespace nibble {

// Fills launch, steps_before and the notes that go with them. Option names: serving.md section 2.
void add_launch(PlanReport& report, const std::optional<PlanFormat>& asked_format);

}  // namespace nibble
