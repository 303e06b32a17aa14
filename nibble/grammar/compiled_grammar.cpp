#include "nibble/grammar/compiled_grammar.h"

#include <algorithm>
#include <map>
#include <unordered_set>

#include "nibble/base/check.h"

namespace nibble {
namespace {

using Kind = GrammarNode::Kind;

// Bounds on memory: a state with its steps takes about 500 bytes, a mask of 129,280 tokens 16 KB.
constexpr size_t kMaxStates = 100000;
// A matcher reads its text again after states were forgotten. When they were needed again so soon,
// more are kept next time.
constexpr int64_t kMinMasksInEpoch = 20000;
constexpr size_t kMaxMasks = 1024;
// Places where an ambiguous text may be: of one state, and of all, each of which takes some 50
// bytes. What is more ambiguous is dead; from half of them on states are forgotten between masks.
constexpr size_t kMaxPlaces = 10000;
constexpr size_t kMaxAllPlaces = 4'000'000;

constexpr size_t kWideByteSet = 64;  // a character of a string, not of a key or number
constexpr int64_t kMinTokensSaved = 4096;

size_t at(int32_t id) { return static_cast<size_t>(id); }

}  // namespace

size_t CompiledGrammar::PlacesHash::operator()(const std::vector<int64_t>& key) const {
  uint64_t hash = 0x9E3779B97F4A7C15;
  for (const int64_t value : key) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0xFF51AFD7ED558CCD;
    hash ^= hash >> 32;
  }
  return hash;
}

CompiledGrammar::CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)), trie_(std::move(trie)), max_states_(kMaxStates) {
  find_byte_classes();
  walk_states_.resize(static_cast<size_t>(trie_->max_token_bytes()) + 1);
  reset();
}

void CompiledGrammar::find_byte_classes() {
  std::map<std::vector<bool>, uint8_t> classes;
  for (size_t byte = 0; byte < byte_classes_.size(); ++byte) {
    std::vector<bool> sets;
    for (const ByteSet& set : grammar_.byte_sets) sets.push_back(set[byte]);
    byte_classes_[byte] =
        classes.try_emplace(std::move(sets), static_cast<uint8_t>(classes.size())).first->second;
  }
  num_byte_classes_ = classes.size();
}

// Forgets all states. State 0 is the start.
void CompiledGrammar::reset() {
  ++epoch_;
  masks_in_epoch_ = 0;
  num_places_ = 0;
  states_.clear();
  state_ids_.clear();
  frames_.clear();
  frame_ids_.clear();
  masks_.clear();
  own_masks_.clear();
  close_and_intern({{grammar_.rules[0], kEmptyStack}});
}

CompiledGrammar::State CompiledGrammar::start() {
  const std::lock_guard lock(mutex_);
  return {epoch_, states_.empty() ? kDead : 0};
}

CompiledGrammar::Walk CompiledGrammar::advance(State from, std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (from.epoch != epoch_) return {true, {}};
  int32_t state = from.id;
  for (const char c : bytes) {
    if (state == kDead) break;
    state = step(state, static_cast<uint8_t>(c));
  }
  return {false, {epoch_, state}};
}

std::optional<bool> CompiledGrammar::is_accepting(State state) {
  const std::lock_guard lock(mutex_);
  if (state.epoch != epoch_) return std::nullopt;
  return state.id != kDead && states_[at(state.id)].accepting;
}

bool CompiledGrammar::fill_mask(State state, TokenMask* mask) {
  const std::lock_guard lock(mutex_);
  if (state.epoch != epoch_) return false;
  NIBBLE_CHECK(mask->vocab_size() == trie_->vocab_size());
  if (state.id == kDead) {
    mask->clear();
    return true;
  }
  *mask = mask_of(state.id);
  // Only between two operations, so that no walk loses its states.
  ++masks_in_epoch_;
  const bool is_ambiguous = num_places_ > kMaxAllPlaces / 2;
  if (states_.size() > max_states_ || is_ambiguous) {
    if (!is_ambiguous && masks_in_epoch_ < kMinMasksInEpoch) max_states_ *= 2;
    reset();
    ++statistics_.times_forgotten;
  }
  return true;
}

CompiledGrammar::Statistics CompiledGrammar::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics result = statistics_;
  result.states = static_cast<int64_t>(states_.size());
  return result;
}

int32_t CompiledGrammar::frame(int32_t node, int32_t parent, int64_t count) {
  const auto [found, is_new] =
      frame_ids_.try_emplace({node, parent, count}, static_cast<int32_t>(frames_.size()));
  if (is_new) frames_.push_back({node, parent, count});
  return found->second;
}

// At repetition `node` with `count` rounds done: another one, or on.
void CompiledGrammar::enter_repeat(int32_t node, int64_t count, int32_t stack,
                                   std::vector<Place>& work) {
  const GrammarNode& repeat_node = grammar_.nodes[at(node)];
  const GrammarRepeat& repeat = grammar_.repeats[at(repeat_node.a)];
  // Without an upper bound, counts from min on are alike.
  if (repeat.max == kUnbounded) count = std::min(count, repeat.min);
  if (count >= repeat.min) work.push_back({repeat_node.next, stack});
  if (count < repeat.max) {
    work.push_back({grammar_.rules[at(repeat.rule)], frame(node, stack, count)});
  }
}

// The state of all places that `work` leads to without reading a byte. kDead when there is none.
int32_t CompiledGrammar::close_and_intern(std::vector<Place> work) {
  StateData state;
  std::unordered_set<uint64_t> seen;
  while (!work.empty()) {
    const Place place = work.back();
    work.pop_back();
    const GrammarNode& node = grammar_.nodes[at(place.node)];
    if (node.kind == Kind::kFail) continue;
    const uint64_t key =
        uint64_t{static_cast<uint32_t>(place.node)} << 32 | static_cast<uint32_t>(place.stack);
    if (!seen.insert(key).second) continue;
    if (seen.size() > kMaxPlaces || num_places_ > kMaxAllPlaces) return kDead;
    switch (node.kind) {
      case Kind::kFail:
        break;
      case Kind::kBytes:
        state.places.push_back(place);
        break;
      case Kind::kSplit:
        work.push_back({node.a, place.stack});
        work.push_back({node.next, place.stack});
        break;
      case Kind::kCall: {
        // A call at the end of its rule returns to where the rule would.
        const bool is_last = grammar_.nodes[at(node.next)].kind == Kind::kReturn;
        const int32_t stack = is_last ? place.stack : frame(node.next, place.stack, kCallFrame);
        work.push_back({grammar_.rules[at(node.a)], stack});
        break;
      }
      case Kind::kRepeat:
        enter_repeat(place.node, 0, place.stack, work);
        break;
      case Kind::kReturn:
        if (place.stack == kEmptyStack) {
          state.accepting = true;
        } else if (place.stack == kUnknownStack) {
          state.escaped = true;
        } else {
          const Frame& top = frames_[at(place.stack)];
          if (top.count == kCallFrame) {
            work.push_back({top.node, top.parent});
          } else {
            enter_repeat(top.node, top.count + 1, top.parent, work);
          }
        }
        break;
    }
  }
  return intern(std::move(state));
}

int32_t CompiledGrammar::intern(StateData state) {
  if (state.places.empty() && !state.accepting && !state.escaped) return kDead;
  std::sort(state.places.begin(), state.places.end());
  std::vector<int64_t> key = {(state.accepting ? 1 : 0) | (state.escaped ? 2 : 0)};
  for (const Place& place : state.places) {
    key.push_back(int64_t{place.node} << 32 | static_cast<uint32_t>(place.stack));
  }
  const auto [found, is_new] =
      state_ids_.try_emplace(std::move(key), static_cast<int32_t>(states_.size()));
  if (is_new) {
    num_places_ += state.places.size();
    states_.push_back(std::move(state));
  }
  return found->second;
}

int32_t CompiledGrammar::make_step(int32_t id, uint8_t byte) {
  std::vector<Place> next;
  for (const Place& place : states_[at(id)].places) {
    const GrammarNode& node = grammar_.nodes[at(place.node)];
    if (grammar_.byte_sets[at(node.a)][byte]) next.push_back({node.next, place.stack});
  }
  const int32_t target = next.empty() ? kDead : close_and_intern(std::move(next));
  auto& steps = states_[at(id)].steps;
  if (steps == nullptr) {
    steps = std::make_unique<int32_t[]>(num_byte_classes_);
    std::fill_n(steps.get(), num_byte_classes_, kUnknown);
  }
  steps[byte_classes_[byte]] = target;
  return target;
}

const TokenMask& CompiledGrammar::mask_of(int32_t state) {
  const int32_t key = representative(state);
  const auto found = masks_.find(key);
  if (found != masks_.end()) {
    ++statistics_.masks_found;
    return found->second;
  }
  ++statistics_.masks_computed;
  if (masks_.size() >= kMaxMasks) masks_.clear();
  TokenMask mask = compute_mask(key);
  if (states_[at(key)].accepting) {
    for (const int32_t eos : trie_->eos_ids()) mask.allow(eos);
  }
  return masks_.emplace(key, std::move(mask)).first->second;
}

// A state with the same mask and simpler counts. A token of L bytes ends at most L rounds of a
// repetition; as long as that reaches neither bound, the count doesn't matter to it.
int32_t CompiledGrammar::representative(int32_t id) {
  const int64_t reach = trie_->max_token_bytes();
  bool changed = false;
  const auto simple_stack = [&](int32_t stack) {
    std::vector<Frame> path;
    for (int32_t s = stack; s >= 0; s = frames_[at(s)].parent) path.push_back(frames_[at(s)]);
    int32_t result = path.empty() ? stack : path.back().parent;
    bool simpler = false;
    for (size_t i = path.size(); i > 0; --i) {
      Frame f = path[i - 1];
      if (f.count > 0) {
        const GrammarRepeat& repeat = grammar_.repeats[at(grammar_.nodes[at(f.node)].a)];
        int64_t count = f.count;
        if (count < repeat.min && repeat.min - count > reach + 1) {
          count = 0;
        } else if (count > repeat.min && repeat.max - count > reach + 1) {
          count = repeat.min;
        }
        simpler |= count != f.count;
        f.count = count;
      }
      if (simpler) {
        result = frame(f.node, result, f.count);
      } else if (i > 1) {
        result = frame(f.node, f.parent, f.count);
      } else {
        result = stack;
      }
    }
    changed |= simpler;
    return result;
  };
  StateData simple;
  const std::vector<Place> places = states_[at(id)].places;
  for (const Place& place : places) {
    simple.places.push_back({place.node, simple_stack(place.stack)});
  }
  if (!changed) return id;
  std::sort(simple.places.begin(), simple.places.end());
  simple.places.erase(std::unique(simple.places.begin(), simple.places.end()), simple.places.end());
  simple.accepting = states_[at(id)].accepting;
  return intern(std::move(simple));
}

bool CompiledGrammar::is_wide(int32_t state) const {
  const auto& places = states_[at(state)].places;
  return std::any_of(places.begin(), places.end(), [&](const Place& place) {
    return grammar_.byte_sets[at(grammar_.nodes[at(place.node)].a)].count() >= kWideByteSet;
  });
}

// Places with the same stack are looked at without it, since the answer is the same in every string
// of a document, and the stack is asked only about the tokens that go on behind the string.
TokenMask CompiledGrammar::compute_mask(int32_t id) {
  TokenMask mask(trie_->vocab_size());
  if (!is_wide(id)) {
    walk(id, 0, trie_->num_nodes(), mask);
    return mask;
  }
  std::vector<Place> places = states_[at(id)].places;
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.stack < b.stack; });
  for (size_t begin = 0; begin < places.size();) {
    size_t end = begin + 1;
    while (end < places.size() && places[end].stack == places[begin].stack) ++end;
    StateData whole;
    StateData own;
    for (size_t i = begin; i < end; ++i) {
      whole.places.push_back(places[i]);
      own.places.push_back({places[i].node, kUnknownStack});
    }
    begin = end;
    const int32_t whole_id = intern(std::move(whole));
    const int32_t own_id = intern(std::move(own));
    if (!is_wide(own_id)) {
      walk(whole_id, 0, trie_->num_nodes(), mask);
      continue;
    }
    auto found = own_masks_.find(own_id);
    if (found == own_masks_.end()) {
      if (own_masks_.size() >= kMaxMasks) own_masks_.clear();
      found = own_masks_.emplace(own_id, compute_own_mask(own_id)).first;
    }
    if (!found->second.is_useful) {
      walk(whole_id, 0, trie_->num_nodes(), mask);
      continue;
    }
    mask.merge(found->second.allowed);
    for (const int32_t node : found->second.open_nodes) {
      walk(whole_id, node, trie_->nodes()[at(node)].end, mask);
    }
  }
  return mask;
}

// Allows the tokens below first_node .. end_node - 1 of the trie that may follow. The nodes are one
// subtree or the whole trie.
void CompiledGrammar::walk(int32_t state, int32_t first_node, int32_t end_node, TokenMask& mask) {
  const auto nodes = trie_->nodes();
  const auto ids = trie_->ids();
  if (first_node >= end_node) return;
  // The bytes in front of the subtree, from one of its tokens.
  const size_t depth = nodes[at(first_node)].depth;
  const std::string_view bytes = trie_->token_bytes(ids[at(nodes[at(first_node)].first_id)]);
  walk_states_[0] = state;
  for (size_t i = 0; i + 1 < depth; ++i) {
    walk_states_[i + 1] = step(walk_states_[i], static_cast<uint8_t>(bytes[i]));
    if (walk_states_[i + 1] == kDead) return;
  }
  for (int32_t n = first_node; n < end_node;) {
    const TokenTrie::Node& node = nodes[at(n)];
    const int32_t next = step(walk_states_[node.depth - 1U], node.byte);
    if (next == kDead) {
      n = node.end;
      continue;
    }
    walk_states_[node.depth] = next;
    for (int32_t i = node.first_id; i < nodes[at(n) + 1].first_id; ++i) mask.allow(ids[at(i)]);
    ++n;
  }
}

// `state` is one with the unknown stack. When a rule returns into it, what follows is open, for the
// tokens that go on from there; a token that ends there is allowed, because every place that is
// left in a grammar can be finished.
CompiledGrammar::OwnMask CompiledGrammar::compute_own_mask(int32_t state) {
  const auto nodes = trie_->nodes();
  const auto ids = trie_->ids();
  OwnMask result;
  result.allowed = TokenMask(trie_->vocab_size());
  walk_states_[0] = state;
  // The depth at which the running path first returned; 0: it has not.
  size_t escape_depth = 0;
  int64_t decided = 0;
  for (int32_t n = 0; n < trie_->num_nodes();) {
    const TokenTrie::Node& node = nodes[at(n)];
    if (node.depth <= escape_depth) escape_depth = 0;
    const int32_t next = step(walk_states_[node.depth - 1U], node.byte);
    if (next == kDead) {
      if (escape_depth > 0) {
        result.open_nodes.push_back(n);
      } else {
        decided += nodes[at(node.end)].first_id - node.first_id;
      }
      n = node.end;
      continue;
    }
    walk_states_[node.depth] = next;
    if (escape_depth == 0 && states_[at(next)].escaped) escape_depth = node.depth;
    for (int32_t i = node.first_id; i < nodes[at(n) + 1].first_id; ++i) {
      result.allowed.allow(ids[at(i)]);
      ++decided;
    }
    ++n;
  }
  result.is_useful =
      decided >= std::min<int64_t>(kMinTokensSaved, static_cast<int64_t>(ids.size()) / 2);
  return result;
}

}  // namespace nibble
