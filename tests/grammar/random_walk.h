// Helpers of the grammar tests: the R1 tokenizer's trie, and walks through a grammar.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/grammar/compile_guided.h"
#include "nibble/grammar/grammar_matcher.h"

namespace nibble::testing {

inline constexpr int32_t kR1VocabSize = 129280;
inline constexpr int32_t kR1Eos = 1;

// Parsed once for each process.
std::shared_ptr<const TokenTrie> r1_trie();

// One token for each byte, id = byte, and EOS = 256: every split of a text.
std::shared_ptr<const TokenTrie> byte_trie();

Guided schema_of(std::string_view text, bool strict = true);

// Fails the test on an error.
std::shared_ptr<CompiledGrammar> compiled(const Guided& guided,
                                          std::shared_ptr<const TokenTrie> trie);

// The text of random allowed tokens until EOS: every token whose bit is set is accepted. For the
// first `free_tokens` all allowed tokens are alike; from then on what closes something goes first,
// so that the text ends.
std::string random_walk(GrammarMatcher& matcher, const TokenTrie& trie, std::mt19937& rng,
                        int free_tokens);

// Whether the grammar allows exactly this text: read byte by byte, and complete at its end.
bool allows(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text);

// Whether the text, whole or not, can begin an allowed text.
bool allows_prefix(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text);

}  // namespace nibble::testing
