#include "nibble/grammar/grammar_matcher.h"

#include "nibble/base/check.h"

namespace nibble {

GrammarMatcher::GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar)
    : grammar_(std::move(grammar)), states_({grammar_->start()}) {}

// After the grammar forgot its states, perhaps more than once while this reads.
void GrammarMatcher::read_again() {
  for (bool is_stale = true; is_stale;) {
    is_stale = false;
    states_ = {grammar_->start()};
    for (const int32_t id : token_ids_) {
      const auto walk = grammar_->advance(states_.back(), trie().token_bytes(id));
      is_stale = walk.is_stale;
      if (is_stale) break;
      states_.push_back(walk.state);
    }
  }
}

bool GrammarMatcher::accept(int32_t token_id) {
  const bool is_eos = trie().is_eos(token_id);
  if (has_ended() || is_eos) {
    if (!is_eos || !(has_ended() || is_complete())) return false;
    token_ids_.push_back(token_id);
    states_.push_back(states_.back());
    return true;
  }
  const std::string_view bytes = trie().token_bytes(token_id);
  if (bytes.empty()) return false;
  for (;;) {
    const auto walk = grammar_->advance(states_.back(), bytes);
    if (walk.is_stale) {
      read_again();
      continue;
    }
    if (walk.state.id == CompiledGrammar::kDead) return false;
    token_ids_.push_back(token_id);
    states_.push_back(walk.state);
    return true;
  }
}

void GrammarMatcher::rollback(int64_t count) {
  NIBBLE_CHECK(count >= 0 && count <= num_tokens());
  token_ids_.resize(token_ids_.size() - static_cast<size_t>(count));
  states_.resize(token_ids_.size() + 1);
}

void GrammarMatcher::fill_mask(TokenMask* mask) {
  if (has_ended()) {
    mask->clear();
    for (const int32_t eos : trie().eos_ids()) mask->allow(eos);
    return;
  }
  while (!grammar_->fill_mask(states_.back(), mask)) read_again();
}

bool GrammarMatcher::is_complete() {
  for (;;) {
    const auto accepting = grammar_->is_accepting(states_.back());
    if (accepting) return *accepting;
    read_again();
  }
}

}  // namespace nibble
