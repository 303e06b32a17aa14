#include "nibble/grammar/compile_guided.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/grammar/gbnf.h"
#include "nibble/grammar/json_grammar.h"
#include "nibble/grammar/json_schema.h"
#include "nibble/grammar/regex.h"

namespace nibble {
namespace {

// Two requests have the same key exactly when they ask for the same.
std::string cache_key(const Guided& guided) {
  std::string key =
      fmt::format("{} {} {}:{} {}:{}", static_cast<int>(guided.kind), guided.strict,
                  guided.text.size(), guided.text, guided.suffix.size(), guided.suffix);
  for (const std::string& choice : guided.choices) {
    key += fmt::format(" {}:{}", choice.size(), choice);
  }
  return key;
}

Result<Grammar> choice_grammar(const Guided& guided) {
  if (guided.choices.empty()) return invalid_argument("guided choice has no choices");
  for (size_t i = 0; i < guided.choices.size(); ++i) {
    if (!is_valid_utf8(guided.choices[i])) {
      return invalid_argument(fmt::format("choice {} is not UTF-8", i));
    }
  }
  GrammarBuilder builder;
  builder.define(0, builder.one_of(guided.choices, GrammarBuilder::kReturn));
  return std::move(builder).build();
}

// The texts of `grammar`, each followed by `suffix`: rule 0 becomes a call of what it was.
Grammar with_suffix(Grammar grammar, std::string_view suffix) {
  const auto body = static_cast<int32_t>(grammar.rules.size());
  for (GrammarNode& node : grammar.nodes) {
    if (node.kind == GrammarNode::Kind::kCall && node.a == 0) node.a = body;
  }
  for (GrammarRepeat& repeat : grammar.repeats) {
    if (repeat.rule == 0) repeat.rule = body;
  }
  grammar.rules.push_back(grammar.rules.front());
  const auto add = [&](GrammarNode node) {
    grammar.nodes.push_back(node);
    return static_cast<int32_t>(grammar.nodes.size()) - 1;
  };
  int32_t next = GrammarBuilder::kReturn;
  for (size_t i = suffix.size(); i-- > 0;) {
    const int byte = static_cast<uint8_t>(suffix[i]);
    grammar.byte_sets.push_back(byte_range(byte, byte));
    const auto set = static_cast<int32_t>(grammar.byte_sets.size()) - 1;
    next = add({GrammarNode::Kind::kBytes, set, next});
  }
  grammar.rules.front() = add({GrammarNode::Kind::kCall, body, next});
  return grammar;
}

Result<Grammar> grammar_without_suffix(const Guided& guided) {
  GrammarBuilder builder;
  switch (guided.kind) {
    case Guided::Kind::kJsonSchema:
      return json_schema_grammar(guided.text, guided.strict);
    case Guided::Kind::kJsonObject:
      builder.define(0, JsonRules(builder).object(GrammarBuilder::kReturn));
      return std::move(builder).build();
    case Guided::Kind::kRegex:
      builder.define(0, NIBBLE_TRY(regex_node(builder, guided.text, RegexTarget::kText,
                                              GrammarBuilder::kReturn)));
      return std::move(builder).build();
    case Guided::Kind::kChoice:
      return choice_grammar(guided);
    case Guided::Kind::kGrammar:
      return gbnf_grammar(guided.text);
  }
  return invalid_argument("guided is of no known kind");
}

}  // namespace

Result<Grammar> guided_grammar(const Guided& guided) {
  Grammar grammar = NIBBLE_TRY(grammar_without_suffix(guided));
  return guided.suffix.empty() ? grammar : with_suffix(std::move(grammar), guided.suffix);
}

Result<std::shared_ptr<CompiledGrammar>> GuidedCache::compile(const Guided& guided) {
  std::string key = cache_key(guided);
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    if (found != entries_.end()) {
      entries_.splice(entries_.begin(), entries_, found);
      return entries_.front().second;
    }
  }
  // Compiled outside the lock; of two at once the later stays.
  auto compiled = std::make_shared<CompiledGrammar>(NIBBLE_TRY(guided_grammar(guided)), trie_);
  const std::lock_guard lock(mutex_);
  entries_.emplace_front(std::move(key), compiled);
  if (entries_.size() > capacity_) entries_.pop_back();
  return compiled;
}

}  // namespace nibble
