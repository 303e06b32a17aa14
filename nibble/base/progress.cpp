#include "nibble/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "nibble/base/text.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::string amount_text(uint64_t amount, Progress::Unit unit) {
  return unit == Progress::Unit::kBytes ? format_bytes(amount) : format_count(amount);
}

}  // namespace

Progress::Progress(std::string label, uint64_t total, Unit unit, bool enabled)
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      enabled_(enabled),
      terminal_(::isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_draw_(start_) {}

Progress::~Progress() { finish(); }

void Progress::add(uint64_t amount) {
  const std::lock_guard lock(mutex_);
  done_ += amount;
  const double interval = terminal_ ? 0.2 : 10.0;
  if (enabled_ && !finished_ && seconds_between(last_draw_, Clock::now()) >= interval) draw(false);
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (enabled_) draw(true);
}

void Progress::draw(bool last) {
  last_draw_ = Clock::now();
  const double elapsed = seconds_between(start_, last_draw_);
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1.0;
  std::string line =
      fmt::format("{} {:3.0f} %  {} of {}  {}/s", label_, 100 * share, amount_text(done_, unit_),
                  amount_text(total_, unit_), amount_text(static_cast<uint64_t>(rate), unit_));
  if (last) {
    line += "  in " + format_duration(elapsed);
  } else if (rate > 0 && done_ < total_) {
    line += "  " + format_duration(static_cast<double>(total_ - done_) / rate) + " left";
  }
  if (terminal_) {
    std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace nibble
