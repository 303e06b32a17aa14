// What a model says its answer is: extraction and equivalence end, and are the same twice.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/math_equal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const std::string_view gold = text.substr(0, cut);
  const std::string_view reply =
      cut == std::string_view::npos ? std::string_view() : text.substr(cut + 1);
  if (const auto part = nibble::answer_part(reply)) {
    const auto boxed = nibble::extract_boxed(*part);
    if (boxed) NIBBLE_CHECK(!boxed->empty());
    const auto letter = nibble::extract_choice(*part, 4);
    if (letter) NIBBLE_CHECK(*letter >= 'A' && *letter <= 'D');
    (void)nibble::extract_choice_aa_v2(*part);
    (void)nibble::extract_code(*part);
  }
  const nibble::MathVerdict verdict = nibble::math_equal(gold, reply);
  NIBBLE_CHECK(verdict == nibble::math_equal(gold, reply));
  return 0;
}
