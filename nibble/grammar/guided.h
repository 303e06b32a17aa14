// What a request asks its output to look like; spec serving sections 1.2 and 4.5.
#pragma once

#include <string>
#include <vector>

namespace nibble {

struct Guided {
  enum class Kind {
    kJsonSchema,  // text is a JSON schema
    kJsonObject,  // any JSON object
    kRegex,       // text is a regular expression for the whole output
    kChoice,      // one of `choices`
    kGrammar,     // text is GBNF, see gbnf.h
  };
  Kind kind = Kind::kJsonObject;
  std::string text = {};
  std::vector<std::string> choices = {};
  // kJsonSchema: refuse schema keywords without support; otherwise ignore them with a warning.
  bool strict = true;
  // Stands behind all that. A tool call's closing fence: its newline may be in one token with the
  // last brace.
  std::string suffix = {};
};

}  // namespace nibble
