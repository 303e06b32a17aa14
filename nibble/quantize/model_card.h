// README.md of a quantized checkpoint: what it is, how it was made, how large it is.
#pragma once

#include <string>
#include <string_view>

#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/quantize.h"

namespace nibble {

// The same text for the same input: no dates and no machine, so that a resumed run gives the same
// bytes.
std::string model_card(std::string_view source_name, const ConversionPlan& plan,
                       const QuantizeOptions& options, std::string_view version);

}  // namespace nibble
