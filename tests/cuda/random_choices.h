// Experts drawn for the tests of MoE layers.
#pragma once

#include <cstdint>
#include <random>
#include <set>
#include <vector>

namespace nibble {

// [tokens, per_token]: expert ids, ascending and distinct, and weights of 0.1 to 1.1.
struct RandomChoices {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// Every token takes `popular`; the others are drawn from `first`, .., experts - 1.
inline RandomChoices random_choices(int64_t tokens, int per_token, int first, int experts,
                                    int32_t popular, uint32_t seed) {
  std::mt19937 rng(seed);
  RandomChoices choices;
  for (int64_t t = 0; t < tokens; ++t) {
    std::set<int32_t> chosen = {popular};
    while (static_cast<int>(chosen.size()) < per_token) {
      chosen.insert(first + static_cast<int32_t>(rng() % static_cast<unsigned>(experts - first)));
    }
    choices.ids.insert(choices.ids.end(), chosen.begin(), chosen.end());
    for (int j = 0; j < per_token; ++j) {
      choices.weights.push_back(0.1f + static_cast<float>(rng() % 1000) / 1000);
    }
  }
  return choices;
}

}  // namespace nibble
