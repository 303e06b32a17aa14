#include "tests/grammar/random_walk.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble::testing {
namespace {

std::string unzipped(const char* path) {
  std::string text;
  gzFile file = gzopen(path, "rb");
  NIBBLE_CHECK(file != nullptr);
  std::vector<char> buffer(1 << 16);
  for (int n = 0; (n = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(n));
  }
  gzclose(file);
  return text;
}

// A token that brings the end nearer: EOS, a quote, a bracket where only structure is allowed, or
// any single byte.
int32_t closing_token(const TokenTrie& trie, const std::vector<int32_t>& allowed,
                      std::mt19937& rng) {
  constexpr size_t kStructure = 150;  // tokens; inside a string there are more
  int32_t quote = -1;
  int32_t bracket = -1;
  std::vector<int32_t> bytes;
  for (const int32_t id : allowed) {
    const std::string_view text = trie.token_bytes(id);
    if (trie.is_eos(id)) return id;
    if (text == "\"") quote = id;
    if (text == "]" || text == "}") bracket = id;
    if (text.size() == 1) bytes.push_back(id);
  }
  if (bracket >= 0 && allowed.size() < kStructure) return bracket;
  if (quote >= 0) return quote;
  return bytes.empty() ? allowed[rng() % allowed.size()] : bytes[rng() % bytes.size()];
}

}  // namespace

std::shared_ptr<const TokenTrie> r1_trie() {
  static const std::shared_ptr<const TokenTrie> kTrie = [] {
    const std::string json = unzipped(NIBBLE_SOURCE_DIR "/tests/golden/r1_tokenizer.json.gz");
    const auto tokenizer = Tokenizer::parse(json, "r1_tokenizer.json");
    NIBBLE_CHECK(tokenizer.has_value());
    return std::make_shared<TokenTrie>(*tokenizer, kR1VocabSize, std::vector<int32_t>{kR1Eos});
  }();
  return kTrie;
}

std::shared_ptr<const TokenTrie> byte_trie() {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  return std::make_shared<TokenTrie>(std::move(bytes), 257, std::vector<int32_t>{256});
}

Guided schema_of(std::string_view text, bool strict) {
  Guided guided;
  guided.kind = Guided::Kind::kJsonSchema;
  guided.text = text;
  guided.strict = strict;
  return guided;
}

std::shared_ptr<CompiledGrammar> compiled(const Guided& guided,
                                          std::shared_ptr<const TokenTrie> trie) {
  auto grammar = guided_grammar(guided);
  EXPECT_TRUE(grammar.has_value()) << (grammar ? "" : grammar.error().message);
  if (!grammar) return nullptr;
  return std::make_shared<CompiledGrammar>(*std::move(grammar), std::move(trie));
}

std::string random_walk(GrammarMatcher& matcher, const TokenTrie& trie, std::mt19937& rng,
                        int free_tokens) {
  std::string text;
  TokenMask mask(trie.vocab_size());
  std::vector<int32_t> allowed;
  for (int step = 0;; ++step) {
    matcher.fill_mask(&mask);
    allowed.clear();
    for (size_t w = 0; w < mask.words().size(); ++w) {
      for (uint64_t word = mask.words()[w]; word != 0; word &= word - 1) {
        allowed.push_back(static_cast<int32_t>(64 * w) + __builtin_ctzll(word));
      }
    }
    if (allowed.empty()) {
      ADD_FAILURE() << "no token may follow " << text;
      return text;
    }
    int32_t id = allowed[rng() % allowed.size()];
    if (step >= free_tokens) {
      id = closing_token(trie, allowed, rng);
    } else if (rng() % 4 == 0) {
      const auto quote = std::find_if(allowed.begin(), allowed.end(), [&](int32_t token) {
        return trie.token_bytes(token) == "\"" || trie.is_eos(token);
      });
      if (quote != allowed.end()) id = *quote;
    }
    if (!matcher.accept(id)) {
      ADD_FAILURE() << "token " << id << " is in the mask behind " << text;
      return text;
    }
    if (trie.is_eos(id)) return text;
    text += trie.token_bytes(id);
    if (step > free_tokens + 3000) {
      ADD_FAILURE() << "the text doesn't end: " << text.substr(0, 300);
      return text;
    }
  }
}

bool allows_prefix(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text) {
  return grammar->advance(grammar->start(), text).state.id != CompiledGrammar::kDead;
}

bool allows(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text) {
  const auto walk = grammar->advance(grammar->start(), text);
  return grammar->is_accepting(walk.state).value_or(false);
}

}  // namespace nibble::testing
