// Benchmarks end with the first error's message: other threads run, so at once.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "nibble/base/result.h"

namespace nibble::bench {

[[noreturn]] inline void fail(const std::string& message) {
  fmt::print(stderr, "bench_cuda: {}\n", message);
  std::fflush(nullptr);
  std::_Exit(1);
}

template <typename T>
T or_exit(Result<T> result) {
  if (!result) fail(result.error().message);
  return *std::move(result);
}

inline void or_exit(const Status& status) {
  if (!status) fail(status.error().message);
}

}  // namespace nibble::bench
