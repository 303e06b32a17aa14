// One sequence's way through a grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nibble/grammar/compiled_grammar.h"

namespace nibble {

// Not thread-safe; the grammar is shared.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar);

  // Takes the next token; false, and nothing changes, when the grammar doesn't allow it: exactly
  // when fill_mask() leaves its bit 0. EOS is accepted when the text is complete, and only EOS
  // behind it.
  bool accept(int32_t token_id);

  // Takes back the last `count` accepted tokens; at most num_tokens().
  void rollback(int64_t count);

  // The tokens that accept() takes. *mask, of the model's vocab_size, is overwritten.
  void fill_mask(TokenMask* mask);

  // Whether the text so far is of the language: EOS may follow.
  bool is_complete();

  // Whether an EOS was accepted.
  bool has_ended() const { return !token_ids_.empty() && trie().is_eos(token_ids_.back()); }

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }

 private:
  const TokenTrie& trie() const { return grammar_->trie(); }
  void read_again();

  std::shared_ptr<CompiledGrammar> grammar_;
  std::vector<int32_t> token_ids_;
  std::vector<CompiledGrammar::State> states_;  // before each token, and behind the last
};

}  // namespace nibble
