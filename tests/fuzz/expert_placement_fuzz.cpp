// The file of --expert-placement: what is read can be used, and written again gives the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "nibble/model/expert_placement.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto placement = nibble::parse_expert_placement(text);
  if (!placement) return 0;
  for (const auto& [layer, slots] : placement->layers) {
    const nibble::ExpertSlots index = placement->index_of(layer);
    const float weight = 1;
    int32_t expert = placement->num_experts - 1;
    index.place(1, &weight, &expert);
    if (slots.at(static_cast<size_t>(expert)) != placement->num_experts - 1) std::abort();
  }
  const auto again = nibble::parse_expert_placement(nibble::to_text(*placement));
  if (!again || again->layers != placement->layers) std::abort();
  return 0;
}
