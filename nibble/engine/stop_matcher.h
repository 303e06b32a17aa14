// Finds stop strings in text that arrives in pieces.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Gives text out as soon as no stop string can begin in it: all pushes and the flush in a row are
// the whole text, up to the match. Decides after each piece, on all text so far: of the matches
// there are, the one that begins first wins, and of those the longest. Generation ends with the
// piece that completes a match, so no longer one can be waited for. One for each sequence.
class StopMatcher {
 public:
  // `stop` has no empty text. With include_stop the matched text is given out too.
  explicit StopMatcher(std::vector<std::string> stop, bool include_stop = false);

  struct Output {
    std::string text;             // may be given out now
    std::optional<size_t> match;  // index in `stop`; what came behind it is dropped
  };

  // Not after a match. Without `matching` (before min_tokens) the piece is text only: no match
  // begins before its end.
  Output push(std::string_view piece, bool matching = true);

  // What was held back, when the text ends without a match.
  std::string flush();

  // Bytes that push() holds back: the longest end of the text that could begin a stop string.
  size_t held_bytes() const { return held_.size(); }

 private:
  size_t holdable_suffix(std::string_view text) const;

  std::vector<std::string> stop_;
  bool include_stop_;
  size_t longest_ = 0;
  std::string held_;
};

}  // namespace nibble
