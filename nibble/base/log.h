// Log lines on stderr: "2030-01-31T12:00:00.123Z INFO text". Standard output is for results.
#pragma once

#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

enum class LogLevel { kTrace, kDebug, kInfo, kWarning, kError };

void log(LogLevel level, std::string_view message);
inline void log_debug(std::string_view message) { log(LogLevel::kDebug, message); }
inline void log_info(std::string_view message) { log(LogLevel::kInfo, message); }
inline void log_warning(std::string_view message) { log(LogLevel::kWarning, message); }
inline void log_error(std::string_view message) { log(LogLevel::kError, message); }

// Lines below this level are dropped; kWarning from the start.
void set_log_level(LogLevel level);

// error, warning, info, debug (or verbose), trace. Errors: kInvalidArgument naming these.
Result<LogLevel> parse_log_level(std::string_view name);

}  // namespace nibble
