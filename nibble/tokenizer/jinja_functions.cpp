// Functions: raise_exception, range, strftime_now.
#include <fmt/format.h>

#include <array>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_ops.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // MAX_RANGE of Jinja2's sandbox.py

Result<Value> raise_exception(Runtime& runtime, const Value&, const Arguments& arguments) {
  const std::string message = NIBBLE_TRY(to_text(*arguments.named[0], runtime.budget));
  return invalid_argument(fmt::format("the chat template refuses: {}", message));
}

// range(stop), range(start, stop), range(start, stop, step).
Result<Value> range(Runtime& runtime, const Value&, const Arguments& arguments) {
  std::array<int64_t, 3> parts = {0, 0, 1};
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!arguments.named[i]) continue;
    if (!arguments.named[i]->is_integral()) {
      return invalid_argument(
          fmt::format("range needs int, found {}", type_name(*arguments.named[i])));
    }
    parts[i] = arguments.named[i]->as_integer();
  }
  if (!arguments.named[1]) parts = {0, parts[0], 1};
  const auto [start, stop, step] = parts;
  if (step == 0) return invalid_argument("the step of a range is 0");
  // Far ends are too far in any case, and would overflow below.
  constexpr int64_t kFar = int64_t{1} << 61;
  std::vector<Value> items;
  for (const int64_t part : parts) {
    if (part > kFar || part < -kFar) return invalid_argument("a range reaches too far");
  }
  const int64_t distance = step > 0 ? stop - start : start - stop;
  const int64_t stride = step > 0 ? step : -step;
  const int64_t count = distance <= 0 ? 0 : (distance - 1) / stride + 1;
  if (count > kMaxRange) {
    return invalid_argument(
        fmt::format("a range of {} elements is longer than {}", count, kMaxRange));
  }
  NIBBLE_TRY(runtime.budget.spend_steps(static_cast<size_t>(count)));
  for (int64_t i = 0; i < count; ++i) items.push_back(Value::integer(start + i * step));
  return make_sequence(Kind::kView, std::move(items), runtime.budget);
}

// Hugging Face's strftime_now: datetime.now().strftime(format), in local time.
Result<Value> strftime_now(Runtime& runtime, const Value&, const Arguments& arguments) {
  if (!arguments.named[0]->is(Kind::kString)) {
    return invalid_argument(
        fmt::format("strftime_now needs str, found {}", type_name(*arguments.named[0])));
  }
  std::tm time{};
  localtime_r(&runtime.now, &time);
  const std::string& format = arguments.named[0]->as_string();
  if (format.empty()) return Value::string("");
  std::array<char, 1024> text{};
  const size_t size = std::strftime(text.data(), text.size(), format.c_str(), &time);
  if (size == 0) return invalid_argument("strftime_now makes no text, or more than 1023 bytes");
  return make_string(std::string(text.data(), size), runtime.budget);
}

const std::vector<Builtin>& table() {
  static const std::vector<Builtin> kTable = {
      {"raise_exception", {"message"}, 1, false, raise_exception},
      {"range", {"start", "stop", "step"}, 1, false, range},
      {"strftime_now", {"format"}, 1, false, strftime_now},
  };
  return kTable;
}

}  // namespace

std::span<const Builtin> functions() { return table(); }

}  // namespace nibble::jinja
