// Any text as a GBNF grammar: a grammar or an error, and a grammar's start can be walked.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/grammar/gbnf.h"
#include "tests/fuzz/grammar_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMaxBytes = 1 << 14;
  if (size > kMaxBytes) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto grammar = nibble::gbnf_grammar(text);
  if (grammar) nibble::walk_grammar(*std::move(grammar));
  return 0;
}
