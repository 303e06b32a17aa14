// Characters younger than the Unicode tables of the regular expression library.
#pragma once

#include <optional>
#include <string_view>

namespace nibble {

// The characters of general category `category` (L, M, N, P or S; none were added to Z) that are in
// Unicode 16 but were not in Unicode 14, as the inside of a class of PCRE2. PCRE2 10.42 has Unicode
// 14, where a new emoji is an unassigned code point and splits from the space before it; Oniguruma
// 6.9.10, which Hugging Face tokenizers uses, has 16. With these added our splits are the same with
// every PCRE2. A range may also span characters of the category that were there before.
//
// Nothing for another category. Source: DerivedGeneralCategory.txt, Unicode 14.0.0 and 16.0.0.
std::optional<std::string_view> unicode16_additions(char category);

}  // namespace nibble
