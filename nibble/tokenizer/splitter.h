// One regular expression that divides text, on PCRE2 with its just-in-time compiler.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace nibble {

// Where a match is noted: one for each thread that matches, good for any Splitter.
class MatchBuffer {
 public:
  MatchBuffer();

 private:
  friend class Splitter;
  struct Free {
    void operator()(pcre2_real_match_data_8* data) const;
  };
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
};

// Cuts text into the matches of its pattern and what lies between them: behaviour "Isolated" of
// Hugging Face's Split. Immutable, so threads may share one.
class Splitter {
 public:
  // `pattern` in Oniguruma's syntax, as far as to_pcre2() (regex_dialect.h) admits it.
  // Errors: kUnsupported as to_pcre2(), for a pattern above 64 KiB or one too large to compile;
  // kCorrupt when it is no regular expression.
  static Result<Splitter> compile(std::string_view pattern);

  enum class Found { kMatch, kNone, kFailed };

  // The first match in `text`, valid UTF-8, at byte `start` or later. An empty match at
  // `last_end`, where the match before ended, is passed over, as Rust's onig crate does.
  // Failed: the pattern needs too much backtracking or memory for this text.
  Found find(std::string_view text, size_t start, size_t last_end, MatchBuffer& buffer,
             size_t* begin, size_t* end) const;

  // What went wrong after kFailed.
  Status failure() const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  struct FreeContext {
    void operator()(pcre2_real_match_context_8* context) const;
  };
  Splitter() = default;
  int match(std::string_view text, size_t start, MatchBuffer& buffer) const;

  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  std::unique_ptr<pcre2_real_match_context_8, FreeContext> context_;
  std::string pattern_;  // as given, for messages
  bool jit_ = false;
};

}  // namespace nibble
