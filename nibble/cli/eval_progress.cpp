#include "nibble/cli/eval_progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr std::chrono::seconds kPlainPause{30};
constexpr std::chrono::milliseconds kTerminalPause{100};
constexpr size_t kTitleWidth = 14;
constexpr size_t kScoreWidth = 13;
constexpr size_t kLeastBar = 8;

size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::max<size_t>(20, size.ws_col);
}

// The first `width` characters of UTF-8: a line that wraps could not be drawn over.
std::string cut(const std::string& text, size_t width) {
  size_t count = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool begins = (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80;
    if (begins && count++ == width) return text.substr(0, i);
  }
  return text;
}

std::string time_left(const RunProgress& p) {
  return p.eta_seconds < 0 ? "" : format_duration(p.eta_seconds) + " left";
}

// Eighths of a cell, so that short bars move too.
std::string bar(double share, size_t width) {
  static constexpr const char* kParts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const auto eighths =
      static_cast<size_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(width * 8));
  std::string text;
  for (size_t i = 0; i < eighths / 8; ++i) text += "█";
  text += kParts[eighths % 8];
  const size_t used = (eighths + 7) / 8;
  for (size_t i = used; i < width; ++i) text += "·";
  return text;
}

std::string score_text(const TaskProgress& task) {
  if (!task.has_score || task.done == 0) return "";
  return fmt::format("{:.1f} ± {:.1f} %", 100 * task.score, 100 * task.score_se);
}

}  // namespace

std::vector<std::string> progress_lines(const RunProgress& p, size_t width) {
  std::vector<std::string> lines;
  const size_t count_width = fmt::format("{}/{}", p.total, p.total).size();
  const size_t fixed = 2 + kTitleWidth + 1 + count_width + 2 + kScoreWidth;
  // Without a bar where there is no room for one.
  const size_t bar_width =
      width >= fixed + 2 + kLeastBar ? std::min<size_t>(40, width - fixed - 2) : 0;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const TaskProgress& task = p.tasks[i];
    const double share =
        task.total > 0 ? static_cast<double>(task.done) / static_cast<double>(task.total) : 0;
    std::string line =
        fmt::format("{} {:<{}} ", i == p.current && task.done < task.total ? ">" : " ",
                    task.title.substr(0, kTitleWidth), kTitleWidth);
    if (bar_width > 0) line += bar(share, bar_width) + "  ";
    line += fmt::format("{:>{}}  {}", fmt::format("{}/{}", task.done, task.total), count_width,
                        score_text(task));
    if (task.truncated > 0) line += fmt::format("  {} cut", task.truncated);
    if (task.errors > 0) line += fmt::format("  {} errors", task.errors);
    lines.push_back(cut(line, width - 1));
  }
  std::string last = fmt::format(" {}/{}", p.done, p.total);
  std::vector<std::string> parts = {fmt::format("{:.0f} tok/s", p.tokens_per_second), time_left(p),
                                    fmt::format("{} running", p.running),
                                    format_duration(p.elapsed_seconds) + " so far"};
  if (p.retries > 0) parts.push_back(fmt::format("{} retries", p.retries));
  for (const std::string& part : parts) {
    if (part.empty() || last.size() + 2 + part.size() >= width) continue;
    last += "  " + part;
  }
  lines.push_back(cut(" " + last, width - 1));
  return lines;
}

std::string progress_text(const RunProgress& p) {
  const TaskProgress none;
  const TaskProgress& task = p.current < p.tasks.size() ? p.tasks[p.current] : none;
  std::string line =
      fmt::format("{}/{} {} {}/{}", p.done, p.total, task.title, task.done, task.total);
  const std::string score = score_text(task);
  if (!score.empty()) line += "  " + score;
  line += fmt::format("  {:.0f} tok/s", p.tokens_per_second);
  if (const std::string left = time_left(p); !left.empty()) line += "  " + left;
  if (task.truncated > 0) line += fmt::format("  {} truncated", task.truncated);
  if (task.errors > 0) line += fmt::format("  {} errors", task.errors);
  return line;
}

EvalProgress::EvalProgress(const std::string& mode)
    : is_tty_(mode == "tty" || (mode == "auto" && ::isatty(STDERR_FILENO) != 0)),
      is_off_(mode == "none") {}

bool EvalProgress::is_due() {
  if (is_off_) return false;
  const auto now = std::chrono::steady_clock::now();
  const auto pause = is_tty_ ? std::chrono::steady_clock::duration(kTerminalPause)
                             : std::chrono::steady_clock::duration(kPlainPause);
  if (!is_first_ && now - last_ < pause) return false;
  is_first_ = false;
  last_ = now;
  return true;
}

void EvalProgress::draw(const std::vector<std::string>& lines) {
  std::string text;
  if (is_tty_ && num_drawn_ > 0) text += fmt::format("\x1b[{}A", num_drawn_);
  for (const std::string& line : lines)
    text += fmt::format("{}{}\n", is_tty_ ? "\r\x1b[K" : "", line);
  num_drawn_ = lines.size();
  (void)std::fputs(text.c_str(), stderr);
  (void)std::fflush(stderr);
}

void EvalProgress::show(const RunProgress& progress) {
  const bool is_last = progress.done == progress.total && !is_off_ && !is_first_;
  if (!is_due() && !(is_tty_ && is_last)) return;
  draw(is_tty_ ? progress_lines(progress, terminal_width())
               : std::vector<std::string>{progress_text(progress)});
}

void EvalProgress::show_scored(int64_t done, int64_t total) {
  if (!is_due() && !(is_tty_ && done == total && !is_off_)) return;
  draw({fmt::format("  scored {}/{}", done, total)});
}

}  // namespace nibble
