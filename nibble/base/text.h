// Small text helpers for people: sizes, durations, suggestions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// "413.3 GB": decimal units, one digit after the point from KB on.
std::string format_bytes(uint64_t bytes);

// "8.2 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

// "12,345".
std::string format_count(uint64_t count);

// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
int edit_distance(std::string_view a, std::string_view b);

// The candidates nearest to `word`, best first, at most three: case, '_' and '-' are ignored, and
// the distance is at most max(1, length / 3).
std::vector<std::string> suggestions(std::string_view word,
                                     std::span<const std::string> candidates);

// "; did you mean 'a' or 'b'?", or nothing without a near candidate.
std::string did_you_mean(std::string_view word, std::span<const std::string> candidates);

// Whether `text` is well-formed UTF-8 (no overlong forms, no surrogates). On failure *bad_offset,
// when not null, is the first byte that is not.
bool is_valid_utf8(std::string_view text, size_t* bad_offset = nullptr);

}  // namespace nibble
