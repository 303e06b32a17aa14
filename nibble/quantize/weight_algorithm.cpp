#include "nibble/quantize/weight_algorithm.h"

#include <fmt/format.h>

#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr std::string_view kModes[] = {"max", "4over6", "mse", "local-hessian"};

}  // namespace

std::string WeightAlgorithm::name() const {
  return fmt::format("{}{}", gptq ? "gptq-" : "", kModes[static_cast<size_t>(mode)]);
}

Result<WeightAlgorithm> parse_weight_algorithm(std::string_view name) {
  std::vector<std::string> known;
  for (const bool gptq : {false, true}) {
    for (size_t i = 0; i < std::size(kModes); ++i) {
      const WeightAlgorithm algorithm{static_cast<Nvfp4Mode>(i), gptq};
      if (algorithm.name() == name) return algorithm;
      known.push_back(algorithm.name());
    }
  }
  const std::string_view why = name.find("awq") == std::string_view::npos
                                   ? ""
                                   : " (AWQ's pre_quant_scale is neither written nor read)";
  return invalid_argument(fmt::format("algorithm '{}' is not supported{}, expected {}{}", name, why,
                                      fmt::join(known, ", "), did_you_mean(name, known)));
}

}  // namespace nibble
