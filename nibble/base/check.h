// NIBBLE_CHECK: an assertion about our own code, on in every build. Nothing a user can send or
// store may reach one; such trouble is a Result<T>.
#pragma once

namespace nibble {

// Prints the condition with its place to stderr and aborts.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace nibble

#define NIBBLE_CHECK(condition)                                               \
  do {                                                                        \
    if (!(condition)) ::nibble::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)
