// The `loop` variable of a for.
#pragma once

#include <vector>

#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

struct Stmt;
class Scope;

// A `for x in items if test` evaluates its test item by item, while the body may change what the
// test reads; loop.last looks one item ahead and loop.length at all of them, as in Jinja2. So items
// move from `source` to `passed` only when somebody asks.
struct Loop {
  std::vector<Value> source;
  size_t next = 0;            // in source: the first item that has not been tested
  std::vector<Value> passed;  // the items that passed the test, those ahead of the body too
  size_t index0 = 0;          // in passed: the current item
  int depth = 0;              // nesting of the deepest item
  const Stmt* statement = nullptr;
  Scope* outer = nullptr;  // where the test is evaluated; null once the loop is over
};

}  // namespace nibble::jinja
