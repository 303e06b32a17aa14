// Variables of a running template.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

// One level of variables. The body of a for, of a block set and of a macro have their own, so that
// what is set there is gone afterwards; if has none. Names live in the syntax tree.
class Scope {
 public:
  explicit Scope(Scope* parent) : parent_(parent) {}

  // The innermost variable of that name, or null.
  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent_) {
      for (const auto& [other, value] : scope->variables_) {
        if (other == name) return &value;
      }
    }
    return nullptr;
  }

  void set(std::string_view name, Value value) {
    for (auto& [other, old] : variables_) {
      if (other == name) {
        old = std::move(value);
        return;
      }
    }
    variables_.emplace_back(name, std::move(value));
  }

 private:
  Scope* parent_;
  std::vector<std::pair<std::string_view, Value>> variables_;
};

}  // namespace nibble::jinja
