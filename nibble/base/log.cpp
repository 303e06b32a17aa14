#include "nibble/base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "nibble/base/error.h"

namespace nibble {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// The level as upper-case text; spdlog's own flag writes it in lower case.
class UpperLevelFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    std::string_view name = "INFO";
    if (message.level == spdlog::level::trace) name = "TRACE";
    if (message.level == spdlog::level::debug) name = "DEBUG";
    if (message.level == spdlog::level::warn) name = "WARNING";
    if (message.level == spdlog::level::err) name = "ERROR";
    out.append(name.data(), name.data() + name.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<UpperLevelFlag>();
  }
};

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("nibble",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    auto formatter =
        std::make_unique<spdlog::pattern_formatter>("", spdlog::pattern_time_type::utc);
    formatter->add_flag<UpperLevelFlag>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %* %v");
    made->set_formatter(std::move(formatter));
    made->set_level(spdlog::level::warn);
    return made;
  }();
  return *instance;
}

}  // namespace

void log(LogLevel level, std::string_view message) {
  logger().log(to_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
}

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

Result<LogLevel> parse_log_level(std::string_view name) {
  if (name == "error") return LogLevel::kError;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "info") return LogLevel::kInfo;
  if (name == "debug" || name == "verbose") return LogLevel::kDebug;
  if (name == "trace") return LogLevel::kTrace;
  return invalid_argument("log level is '" + std::string(name) +
                          "', expected error, warning, info, debug or trace");
}

}  // namespace nibble
