// Names of deepseek_fp4_plugin's options for offloading that nibble refuses, and what to do
// instead.
#pragma once

#include <span>

namespace nibble {

struct ExpertRefusal {
  const char* name;  // as in YAML; on nibble run's command line with dashes
  const char* why;   // and the way out
};

// Those that would change results, and those whose work another option does. Source: spec kernels,
// section 5.4.
std::span<const ExpertRefusal> expert_refusals();

}  // namespace nibble
