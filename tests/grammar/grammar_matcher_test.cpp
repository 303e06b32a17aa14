#include "nibble/grammar/grammar_matcher.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/grammar/random_walk.h"

namespace nibble {
namespace {

using testing::byte_trie;
using testing::compiled;
using testing::kR1Eos;
using testing::kR1VocabSize;
using testing::r1_trie;
using testing::random_walk;
using testing::schema_of;

constexpr const char* kMixedSchema = R"({"type":"object","properties":{
  "name":{"type":"string","maxLength":300},
  "list":{"type":"array","items":{"anyOf":[{"type":"string"},{"type":"integer"},{"type":"null"}]},
          "maxItems":300},
  "deep":{"$ref":"#/$defs/node"}},
  "required":["name","list"],
  "additionalProperties":{"type":"string","minLength":2},
  "$defs":{"node":{"type":"object","properties":{"v":{"type":"number"},
           "next":{"$ref":"#/$defs/node"}},"required":["v"]}}})";

// The definition of a mask: one token at a time, without the trie and what is kept.
TokenMask naive_mask(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text) {
  TokenMask mask(grammar->trie().vocab_size());
  const auto state = grammar->advance(grammar->start(), text).state;
  for (int32_t id = 0; id < mask.vocab_size(); ++id) {
    const std::string_view bytes = grammar->trie().token_bytes(id);
    if (bytes.empty()) continue;
    if (grammar->advance(state, bytes).state.id != CompiledGrammar::kDead) mask.allow(id);
  }
  if (grammar->is_accepting(state).value()) {
    for (const int32_t id : grammar->trie().eos_ids()) mask.allow(id);
  }
  return mask;
}

TEST(GrammarMatcher, MasksAreThoseOfEachTokenByItself) {
  std::mt19937 rng(4);
  for (const char* schema : {kMixedSchema, R"({"type":"string","minLength":200,"maxLength":500})",
                             R"({"type":"string","pattern":"^a[^b]*c$"})"}) {
    const auto fast = compiled(schema_of(schema), r1_trie());
    const auto slow = compiled(schema_of(schema), r1_trie());
    for (int round = 0; round < 2; ++round) {
      GrammarMatcher matcher(fast);
      std::string text;
      TokenMask mask(kR1VocabSize);
      for (int step = 0; step < 40 && !matcher.has_ended(); ++step) {
        matcher.fill_mask(&mask);
        if (step % 3 == 0) {
          ASSERT_EQ(mask, naive_mask(slow, text)) << text;
        }
        int64_t pick = static_cast<int64_t>(rng() % static_cast<uint64_t>(mask.count()));
        int32_t id = 0;
        while (!mask.allows(id) || pick-- > 0) ++id;
        ASSERT_TRUE(matcher.accept(id));
        text += fast->trie().token_bytes(id);
      }
    }
  }
}

TEST(GrammarMatcher, AcceptsExactlyWhatItsMaskAllows) {
  const auto grammar = compiled(schema_of(R"({"enum":["ab","ac",12]})"), byte_trie());
  GrammarMatcher matcher(grammar);
  TokenMask mask(257);
  for (const char expected : std::string("\"ac\"")) {
    matcher.fill_mask(&mask);
    for (int32_t id = 0; id < 257; ++id) {
      EXPECT_EQ(matcher.accept(id), mask.allows(id));
      if (mask.allows(id)) matcher.rollback(1);
    }
    EXPECT_FALSE(matcher.is_complete());
    ASSERT_TRUE(matcher.accept(expected));
  }
  EXPECT_TRUE(matcher.is_complete());
  matcher.fill_mask(&mask);
  EXPECT_EQ(mask.count(), 1);  // EOS only
  EXPECT_TRUE(mask.allows(256));
  EXPECT_FALSE(matcher.accept('"'));
  ASSERT_TRUE(matcher.accept(256));
  EXPECT_TRUE(matcher.has_ended());
  EXPECT_FALSE(matcher.accept('"'));
  matcher.rollback(1);
  EXPECT_FALSE(matcher.has_ended());
}

TEST(GrammarMatcher, ANumberCanEndOrGoOn) {
  const auto grammar = compiled(schema_of(R"({"type":"integer"})"), byte_trie());
  GrammarMatcher matcher(grammar);
  ASSERT_TRUE(matcher.accept('1'));
  TokenMask mask(257);
  matcher.fill_mask(&mask);
  EXPECT_EQ(mask.count(), 11);  // ten digits and EOS
}

TEST(GrammarMatcher, RollbackGivesTheStateBefore) {
  std::mt19937 rng(8);
  const auto grammar = compiled(schema_of(kMixedSchema), r1_trie());
  GrammarMatcher straight(grammar);
  GrammarMatcher wavering(grammar);
  TokenMask a(kR1VocabSize);
  TokenMask b(kR1VocabSize);
  for (int step = 0; step < 200 && !straight.has_ended(); ++step) {
    straight.fill_mask(&a);
    const auto pick = [&] {
      auto id = static_cast<int32_t>(rng() % kR1VocabSize);
      while (!a.allows(id)) id = (id + 1) % kR1VocabSize;
      return id;
    };
    // A window of drafts, all refused.
    int64_t drafts = 0;
    for (; drafts < 3; ++drafts) {
      wavering.fill_mask(&b);
      auto id = static_cast<int32_t>(rng() % kR1VocabSize);
      while (!b.allows(id)) id = (id + 1) % kR1VocabSize;
      ASSERT_TRUE(wavering.accept(id));
    }
    wavering.rollback(drafts);
    wavering.fill_mask(&b);
    ASSERT_EQ(a, b);
    const int32_t id = pick();
    ASSERT_TRUE(straight.accept(id));
    ASSERT_TRUE(wavering.accept(id));
  }
}

TEST(GrammarMatcher, SpecialAndAddedTokensAreNeverContent) {
  const auto grammar = compiled(schema_of(R"({"type":"string"})"), r1_trie());
  GrammarMatcher matcher(grammar);
  TokenMask mask(kR1VocabSize);
  matcher.fill_mask(&mask);
  EXPECT_GT(mask.count(), 20);
  for (int32_t id = 0; id < kR1VocabSize; ++id) {
    if (grammar->trie().token_bytes(id).empty()) {
      EXPECT_FALSE(mask.allows(id)) << id;
      EXPECT_FALSE(matcher.accept(id)) << id;
    }
  }
  // <think> and </think>, whose text a string could hold.
  EXPECT_TRUE(grammar->trie().token_bytes(128798).empty());
  EXPECT_TRUE(grammar->trie().token_bytes(128799).empty());
  EXPECT_FALSE(matcher.accept(kR1Eos));
}

TEST(GrammarMatcher, MasksOfARepeatedStateAreFoundAgain) {
  const auto grammar = compiled(schema_of(R"({"type":"string"})"), byte_trie());
  GrammarMatcher matcher(grammar);
  TokenMask mask(257);
  ASSERT_TRUE(matcher.accept('"'));
  for (int i = 0; i < 100; ++i) {
    matcher.fill_mask(&mask);
    ASSERT_TRUE(matcher.accept('a'));
  }
  EXPECT_EQ(grammar->statistics().masks_computed, 1);
  EXPECT_EQ(grammar->statistics().masks_found, 99);
}

// 60,000 list entries, each with a count of its own: more states than are kept.
TEST(GrammarMatcher, ForgettingStatesDoesNotChangeTheAnswers) {
  const auto grammar = compiled(
      schema_of(R"({"type":"array","items":{"enum":[1,2,"x"]},"maxItems":100000})"), byte_trie());
  GrammarMatcher early(grammar);
  ASSERT_TRUE(early.accept('['));
  GrammarMatcher matcher(grammar);
  TokenMask mask(257);
  ASSERT_TRUE(matcher.accept('['));
  for (int i = 0; i < 60000; ++i) {
    for (const char c : {'1', ','}) {
      ASSERT_TRUE(matcher.accept(c));
      matcher.fill_mask(&mask);
    }
  }
  EXPECT_GT(grammar->statistics().times_forgotten, 0);
  EXPECT_TRUE(mask.allows('2') && mask.allows('"') && !mask.allows(']') && !mask.allows('3'));
  early.fill_mask(&mask);
  EXPECT_TRUE(mask.allows(']') && mask.allows('1') && !mask.allows(','));
  EXPECT_TRUE(early.accept('1'));
  matcher.rollback(1);
  EXPECT_TRUE(matcher.accept(']'));
  EXPECT_TRUE(matcher.is_complete());
}

TEST(GrammarMatcher, SequencesOnManyThreadsShareAGrammar) {
  const auto grammar = compiled(schema_of(kMixedSchema), byte_trie());
  std::vector<std::string> texts(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 rng(i / 2);  // pairs do the same
      GrammarMatcher matcher(grammar);
      texts[i] = random_walk(matcher, grammar->trie(), rng, 200);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_EQ(texts[2], texts[3]);
}

}  // namespace
}  // namespace nibble
