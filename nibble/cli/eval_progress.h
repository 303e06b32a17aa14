// How far an evaluation is: a picture on a terminal that is drawn over, or lines now and then.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "nibble/eval/run.h"

namespace nibble {

class EvalProgress {
 public:
  // `mode`: auto (a terminal or not), tty, plain (a line every 30 seconds) or none.
  explicit EvalProgress(const std::string& mode);
  ~EvalProgress() = default;
  EvalProgress(const EvalProgress&) = delete;
  EvalProgress& operator=(const EvalProgress&) = delete;

  void show(const RunProgress& progress);
  // Scoring, with one line.
  void show_scored(int64_t done, int64_t total);

 private:
  void draw(const std::vector<std::string>& lines);
  bool is_due();

  bool is_tty_;
  bool is_off_;
  size_t num_drawn_ = 0;  // lines on the terminal
  bool is_first_ = true;
  std::chrono::steady_clock::time_point last_;
};

// What a terminal of `width` columns shows: a line for each task with a bar, the running score and
// its error, then the whole run's.
std::vector<std::string> progress_lines(const RunProgress& progress, size_t width);

// The same in one line, for logs.
std::string progress_text(const RunProgress& progress);

}  // namespace nibble
