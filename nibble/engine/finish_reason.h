// Why a sequence ended.
#pragma once

#include <string_view>

namespace nibble {

enum class FinishReason { kStop, kLength, kAbort, kError };

// "stop", "length", "abort", "error": the API's names.
std::string_view finish_reason_name(FinishReason reason);

}  // namespace nibble
