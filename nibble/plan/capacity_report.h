// Capacity for people and for programs (schema nibble.plan.capacity/1).
#pragma once

#include <string>

#include "nibble/checkpoint/json.h"
#include "nibble/plan/capacity.h"
#include "nibble/plan/report_text.h"

namespace nibble {

std::string capacity_text(const CapacityReport& report, TableStyle style);
JsonValue capacity_json(const CapacityReport& report);

}  // namespace nibble
