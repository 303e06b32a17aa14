#include "nibble/checkpoint/open_source.h"

#include <fmt/format.h>

#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/repeating_source.h"
#include "nibble/checkpoint/safetensors_source.h"

namespace nibble {
namespace {

struct LayoutName {
  std::string_view name;
  CheckpointLayout layout;
};
constexpr LayoutName kLayouts[] = {{"nvfp4_v2", CheckpointLayout::kNvfp4V2},
                                   {"nvfp4_v1", CheckpointLayout::kNvfp4V1},
                                   {"fp8", CheckpointLayout::kFp8},
                                   {"bf16", CheckpointLayout::kBf16}};

struct DummyWeights {
  CheckpointLayout layout = CheckpointLayout::kNvfp4V2;
  uint64_t seed = 0;
};

Result<DummyWeights> parse_dummy_weights(std::string_view json, std::string_view where) {
  const JsonValue root = NIBBLE_TRY(parse_json(json, where));
  const JsonValue::Object* const members = root.as_object();
  if (members == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, root.kind_name()));
  }
  DummyWeights dummy;
  for (const auto& [name, value] : *members) {
    if (name == "layout") {
      const std::string* const text = value.as_string();
      const LayoutName* found = nullptr;
      for (const LayoutName& known : kLayouts) {
        if (text != nullptr && *text == known.name) found = &known;
      }
      if (found == nullptr) {
        return corrupt(fmt::format("{}: layout is {}, expected nvfp4_v2, nvfp4_v1, fp8 or bf16",
                                   where, to_json(value, -1)));
      }
      dummy.layout = found->layout;
    } else if (name == "seed") {
      const int64_t* const number = value.as_integer();
      if (number == nullptr || *number < 0) {
        return corrupt(fmt::format("{}: seed is {}, expected a whole number, 0 or more", where,
                                   to_json(value, -1)));
      }
      dummy.seed = static_cast<uint64_t>(*number);
    } else {
      return corrupt(fmt::format("{}: {} is not known; there are layout and seed", where, name));
    }
  }
  return dummy;
}

}  // namespace

Result<OpenedSource> open_source(const std::filesystem::path& directory,
                                 const ModelConfig& config) {
  const std::filesystem::path file = directory / kDummyWeightsFile;
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) {
    auto source = NIBBLE_TRY(SafetensorsSource::open(directory));
    std::vector<std::string> warnings = source->warnings();
    return OpenedSource{std::move(source), std::move(warnings)};
  }
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    if (entry.path().extension() != ".safetensors") continue;
    return invalid_argument(
        fmt::format("{} has both {} and {}; made-up weights and real ones do "
                    "not go together: move one of them away",
                    directory.string(), kDummyWeightsFile, entry.path().filename().string()));
  }
  const std::string text = NIBBLE_TRY(read_text_file(file, 4096));
  const std::string where = file.string();
  const DummyWeights dummy = NIBBLE_TRY(parse_dummy_weights(text, where));
  auto source = NIBBLE_TRY(RepeatingSource::create(config, dummy.layout, dummy.seed));
  std::vector<std::string> warnings = {
      fmt::format("{}: THE WEIGHTS ARE MADE UP; times and memory are a real model's, what it says "
                  "is noise",
                  where)};
  return OpenedSource{std::move(source), std::move(warnings)};
}

}  // namespace nibble
