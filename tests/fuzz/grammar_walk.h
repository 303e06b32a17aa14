// A grammar over single bytes, walked from its start.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/grammar/compiled_grammar.h"

namespace nibble {

// Whatever can be satisfied leads on from every state: the least allowed byte, a few times.
inline void walk_grammar(Grammar grammar) {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  const auto trie = std::make_shared<TokenTrie>(std::move(bytes), 257, std::vector<int32_t>{256});
  CompiledGrammar compiled(std::move(grammar), trie);
  TokenMask mask(257);
  auto state = compiled.start();
  for (int step = 0; step < 20; ++step) {
    NIBBLE_CHECK(compiled.fill_mask(state, &mask));
    NIBBLE_CHECK(mask.count() > 0);
    int id = 0;
    while (!mask.allows(id)) ++id;
    if (id == 256) break;
    state = compiled.advance(state, std::string(1, static_cast<char>(id))).state;
  }
}

}  // namespace nibble
