// Any text as a GBNF grammar: a grammar or an error, and a grammar's start can be walked.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/grammar/compiled_grammar.h"
#include "nibble/grammar/gbnf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMaxBytes = 1 << 14;
  if (size > kMaxBytes) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto grammar = nibble::gbnf_grammar(text);
  if (!grammar) return 0;
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  const auto trie =
      std::make_shared<nibble::TokenTrie>(std::move(bytes), 257, std::vector<int32_t>{256});
  nibble::CompiledGrammar compiled(*std::move(grammar), trie);
  // Whatever can be satisfied leads on from every state: the least allowed byte, a few times.
  nibble::TokenMask mask(257);
  auto state = compiled.start();
  for (int step = 0; step < 20; ++step) {
    NIBBLE_CHECK(compiled.fill_mask(state, &mask));
    NIBBLE_CHECK(mask.count() > 0);
    int id = 0;
    while (!mask.allows(id)) ++id;
    if (id == 256) break;
    state = compiled.advance(state, std::string(1, static_cast<char>(id))).state;
  }
  return 0;
}
