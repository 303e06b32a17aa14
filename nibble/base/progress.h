// A progress line on stderr for long work: bytes or items done, rate, time left.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace nibble {

// On a terminal one line is redrawn a few times a second; elsewhere a line is printed every ten
// seconds. Thread-safe. Prints nothing when `enabled` is false.
class Progress {
 public:
  enum class Unit { kBytes, kItems };

  // label: "quantizing". total > 0, in units.
  Progress(std::string label, uint64_t total, Unit unit, bool enabled = true);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(uint64_t amount);

  // Draws the last state and ends the line; later calls do nothing.
  void finish();

 private:
  void draw(bool last);

  std::mutex mutex_;
  std::string label_;
  uint64_t total_;
  uint64_t done_ = 0;
  Unit unit_;
  bool enabled_;
  bool terminal_;
  bool finished_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

}  // namespace nibble
