// The demo checkpoint behind the public interface, and what it answers greedily (made with Hugging
// Face transformers).
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/llm.h"

namespace nibble::testing {

inline std::string demo_directory() { return std::string(NIBBLE_SOURCE_DIR) + "/models/demo"; }

// One for all tests that don't need options of their own.
inline LLM& demo_llm() {
  static LLM llm(demo_directory());
  return llm;
}

struct GreedyPrompt {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<int32_t> greedy;
  std::string greedy_text;
};

inline std::vector<GreedyPrompt> greedy_prompts() {
  std::ifstream file(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/demo/reference.json");
  std::vector<GreedyPrompt> prompts;
  for (const auto& entry : nlohmann::json::parse(file)) {
    if (entry.at("greedy").empty()) continue;  // logits alone were recorded
    prompts.push_back(
        {entry.at("text"), entry.at("ids"), entry.at("greedy"), entry.at("greedy_text")});
  }
  return prompts;
}

}  // namespace nibble::testing
