// A grammar over a tokenizer's tokens: the states that reading bytes leads to, and each state's
// token mask, both made when first needed and kept.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/grammar/grammar.h"
#include "nibble/grammar/token_mask.h"
#include "nibble/grammar/token_trie.h"

namespace nibble {

// Where reading can stand, in short: a set of places in the grammar, each with the rules that it
// has to return to. Two texts with the same continuations usually have the same state, so a mask is
// computed once and found again: in a JSON string, after every character.
//
// Thread-safe. Shared by all sequences with this grammar.
class CompiledGrammar {
 public:
  static constexpr int32_t kDead = -1;

  CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie);

  const TokenTrie& trie() const { return *trie_; }

  // A state's number is good until states are forgotten to bound memory, which changes the epoch; a
  // matcher then reads its text again.
  struct State {
    int64_t epoch = 0;
    int32_t id = kDead;
  };
  State start();

  // The state behind `bytes`: kDead when no text of the language begins so, nothing when `from` is
  // of another epoch.
  struct Walk {
    bool is_stale = false;
    State state;
  };
  Walk advance(State from, std::string_view bytes);

  // Whether the text so far is of the language; nothing when the state is of another epoch.
  std::optional<bool> is_accepting(State state);

  // The tokens that may follow; EOS when the text so far is of the language. *mask, of the trie's
  // vocab_size, is overwritten. False when the state is of another epoch.
  bool fill_mask(State state, TokenMask* mask);

  struct Statistics {
    int64_t states = 0;
    int64_t times_forgotten = 0;
    int64_t masks_computed = 0;
    int64_t masks_found = 0;
  };
  Statistics statistics() const;

 private:
  // Where a rule returns to: a frame is a node of a tree whose root is the empty stack.
  struct Frame {
    int32_t node = 0;
    int32_t parent = 0;
    int64_t count = kCallFrame;  // of the repetition `node` so far, with the running one left out
  };
  static constexpr int64_t kCallFrame = -1;
  static constexpr int32_t kEmptyStack = -1;
  static constexpr int32_t kUnknownStack = -2;  // see OwnMask
  static constexpr int32_t kUnknown = -2;       // a step not made yet

  struct Place {
    int32_t node = 0;  // of kind kBytes
    int32_t stack = 0;
    friend auto operator<=>(const Place&, const Place&) =
        default;  // NOLINT(modernize-use-nullptr): of the spaceship itself
  };
  struct StateData {
    std::vector<Place> places;
    bool accepting = false;
    bool escaped = false;              // a rule returned into the unknown stack
    std::unique_ptr<int32_t[]> steps;  // [num_byte_classes_]; null: none made yet
  };

  // What can be said of places without their stack: tokens that stay inside the running rule are
  // decided; of the others, the trie's nodes where the decision needs the stack.
  struct OwnMask {
    TokenMask allowed;
    std::vector<int32_t> open_nodes;
    bool is_useful = false;
  };

  struct PlacesHash {
    size_t operator()(const std::vector<int64_t>& key) const;
  };

  void find_byte_classes();
  void reset();
  int32_t frame(int32_t node, int32_t parent, int64_t count);
  int32_t close_and_intern(std::vector<Place> work);
  void enter_repeat(int32_t node, int64_t count, int32_t stack, std::vector<Place>& work);
  int32_t intern(StateData state);
  int32_t step(int32_t state, uint8_t byte) {
    const auto& steps = states_[static_cast<size_t>(state)].steps;
    const size_t byte_class = byte_classes_[byte];
    if (steps != nullptr && steps[byte_class] != kUnknown) return steps[byte_class];
    return make_step(state, byte);
  }
  int32_t make_step(int32_t state, uint8_t byte);
  bool is_wide(int32_t state) const;

  const TokenMask& mask_of(int32_t state);
  TokenMask compute_mask(int32_t state);
  void walk(int32_t state, int32_t first_node, int32_t end_node, TokenMask& mask);
  OwnMask compute_own_mask(int32_t state);
  int32_t representative(int32_t state);

  Grammar grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  mutable std::mutex mutex_;
  // Bytes that every byte set of the grammar holds together or not at all have the same class.
  std::array<uint8_t, 256> byte_classes_ = {};
  size_t num_byte_classes_ = 0;
  int64_t epoch_ = 0;
  size_t max_states_;
  int64_t masks_in_epoch_ = 0;
  size_t num_places_ = 0;  // of all states
  std::vector<StateData> states_;
  std::unordered_map<std::vector<int64_t>, int32_t, PlacesHash> state_ids_;
  std::vector<Frame> frames_;
  std::unordered_map<std::vector<int64_t>, int32_t, PlacesHash> frame_ids_;
  std::unordered_map<int32_t, TokenMask> masks_;
  std::unordered_map<int32_t, OwnMask> own_masks_;
  std::vector<int32_t> walk_states_;  // by depth, during a walk
  Statistics statistics_;
};

}  // namespace nibble
