// From what a request asks for to a grammar.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "nibble/base/result.h"
#include "nibble/grammar/compiled_grammar.h"
#include "nibble/grammar/guided.h"

namespace nibble {

// Errors: those of json_schema_grammar() and regex_node(); kInvalidArgument for no choices or one
// that is not UTF-8; kUnsupported for Guided::Kind::kGrammar.
Result<Grammar> guided_grammar(const Guided& guided);

// Compiled grammars by what they were asked for, the least recently used forgotten first.
// Thread-safe.
class GuidedCache {
 public:
  explicit GuidedCache(std::shared_ptr<const TokenTrie> trie, size_t capacity = 64)
      : trie_(std::move(trie)), capacity_(capacity) {}

  // Errors: those of guided_grammar().
  Result<std::shared_ptr<CompiledGrammar>> compile(const Guided& guided);

 private:
  std::shared_ptr<const TokenTrie> trie_;
  size_t capacity_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<CompiledGrammar>>> entries_;  // newest in front
};

}  // namespace nibble
