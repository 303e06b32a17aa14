// What the router chose, step by step and layer by layer, as text: recorded by a run, replayed
// through every cache policy.
//
//   nibble-routing-trace 1 experts 256
//   LAYER TOKENS EXPERT:WEIGHT EXPERT:WEIGHT ...
//
// One line for each MoE layer of each step; each expert once, its weights added over the tokens.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/model/expert_store.h"

namespace nibble {

// One thread at a time.
class RoutingTraceWriter {
 public:
  // Errors: those of fopen.
  static Result<std::unique_ptr<RoutingTraceWriter>> create(const std::filesystem::path& path,
                                                            int num_experts);
  RoutingTraceWriter(const RoutingTraceWriter&) = delete;
  RoutingTraceWriter& operator=(const RoutingTraceWriter&) = delete;
  ~RoutingTraceWriter();

  // What can't be written (a full disk) is warned of once, and ends the trace.
  void add(int layer, std::span<const ExpertUse> uses, int64_t num_tokens);

 private:
  RoutingTraceWriter() = default;
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
  std::string line_;
};

struct RoutingStep {
  int layer = 0;
  int64_t num_tokens = 0;
  std::vector<ExpertUse> uses;
};

struct RoutingTrace {
  int num_experts = 0;
  std::vector<RoutingStep> steps;
};

// Errors: kCorrupt naming the line and what is wrong with it.
Result<RoutingTrace> parse_routing_trace(std::string_view text);
Result<RoutingTrace> load_routing_trace(const std::filesystem::path& path);

// By layer, in how many steps each expert was used: [num_experts].
std::map<int, std::vector<int64_t>> count_experts(const RoutingTrace& trace);

// The same as text "LAYER EXPERT STEPS", most used first within its layer:
// the file that --hot-experts takes.
std::string expert_counts_text(const RoutingTrace& trace);

struct HotExpert {
  int layer = 0;
  int expert = 0;
};
// Errors: kCorrupt naming the line.
Result<std::vector<HotExpert>> parse_expert_counts(std::string_view text);

}  // namespace nibble
