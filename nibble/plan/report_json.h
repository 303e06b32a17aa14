// Plans as JSON, schema nibble.plan/1. Source: planner.md section 13. Fields are only ever added.
#pragma once

#include <string>
#include <vector>

#include "nibble/checkpoint/json.h"
#include "nibble/plan/device_sets.h"
#include "nibble/plan/page_method.h"
#include "nibble/plan/planner.h"
#include "nibble/plan/published.h"

namespace nibble {

JsonValue plan_json(const PlanReport& report);
JsonValue error_json(const PlanError& error);

// One row of the device table: what the web page, the CSV and the Markdown show too.
JsonValue set_json(const DeviceSet& set);
JsonValue sets_json(const PlanModel& model, const PlanRequest& request,
                    const std::vector<DeviceSet>& sets);

JsonValue accuracy_json(const AccuracyReport& report);

}  // namespace nibble
