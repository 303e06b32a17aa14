// The syntax tree of a template. Built once by the parser, never changed afterwards.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

struct Builtin;

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kConstant,     // constant
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value...
  kArithmetic,   // operands[0] operators[0] operands[1] operators[1] ..., from left to right
  kConcat,       // operands joined by ~
  kAnd,          // operands
  kOr,           // operands
  kNot,          // operands[0]
  kNegate,       // operands[0]
  kPlus,         // operands[0]
  kCompare,      // as kArithmetic, Python's chain: a < b < c
  kConditional,  // operands: condition, value, other (may be null: undefined)
  kAttribute,    // operands[0].name
  kItem,         // operands[0][operands[1]]
  kSlice,        // operands[0][operands[1] : operands[2] : operands[3]], the parts may be null
  kMethod,       // operands[0].name(operands[1...], named...), found in `builtin`
  kCall,         // name(operands..., named...): a macro or a function
  kFilter,       // operands[0] | name(operands[1...], named...)
  kTest,         // operands[0] is name(operands[1...])
  kBlockText,    // the text of {% set x | filter %}...{% endset %}
};

struct Expr {
  ExprKind kind;
  int line;
  std::string name;
  Value constant;
  std::vector<ExprPtr> operands;
  std::vector<std::string> operators;
  std::vector<std::pair<std::string, ExprPtr>> named;
  const Builtin* builtin = nullptr;  // of kMethod, kFilter, kTest and a kCall that names a function
  int depth = 1;                     // of the tree below
};

// What {% set %} and {% for %} assign to.
struct Target {
  std::string name;           // a variable, or with `attribute` a namespace
  std::string attribute;      // "" for a variable
  std::vector<Target> parts;  // of a tuple; name is "" then
};

struct Stmt;
using Block = std::vector<Stmt>;

struct Branch {
  ExprPtr condition;  // null for else
  Block body;
};

struct MacroParameter {
  std::string name;
  ExprPtr otherwise;  // null: undefined
};

struct Macro {
  std::string name;
  std::vector<MacroParameter> parameters;
  Block body;
};

enum class StmtKind {
  kText,      // text
  kPrint,     // expr
  kIf,        // branches
  kFor,       // target in expr if test: branches[0]; branches[1], when there, is the else
  kSet,       // target = expr
  kSetBlock,  // target = the text of branches[0], through expr
  kMacro,     // macro
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind;
  int line;
  std::string text;
  ExprPtr expr;
  ExprPtr test;
  Target target;
  std::vector<Branch> branches;
  std::unique_ptr<Macro> macro;
};

}  // namespace nibble::jinja
