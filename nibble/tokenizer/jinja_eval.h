// The evaluator: runs a syntax tree once.
#pragma once

#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_ast.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_loop.h"
#include "nibble/tokenizer/jinja_scope.h"

namespace nibble::jinja {

class Evaluator {
 public:
  // `variables` outlives the evaluator.
  Evaluator(const Dict& variables, const Limits& limits, std::time_t now)
      : variables_(variables), budget_(limits), runtime_{budget_, now}, root_(nullptr) {}

  Result<std::string> run(const Block& block);

 private:
  enum class Flow { kNext, kBreak, kContinue };

  // One level of recursion. An error ends the whole run, so only success needs leave().
  Status enter();
  void leave() { --depth_; }

  Result<Flow> run_block(const Block& block, Scope& scope, std::string& out);
  Result<Flow> run_statement(const Stmt& statement, Scope& scope, std::string& out);
  Result<Flow> run_if(const Stmt& statement, Scope& scope, std::string& out);
  Result<Flow> run_for(const Stmt& statement, Scope& scope, std::string& out);
  Status run_set(const Stmt& statement, Scope& scope);
  Status print(const Stmt& statement, Scope& scope, std::string& out);
  Status assign(const Target& target, Value value, Scope& scope);

  // Makes loop.passed[count - 1] exist. False when there are fewer items.
  Result<bool> advance_loop(Loop& loop, size_t count);
  Result<Value> loop_attribute(Loop& loop, std::string_view name);

  Result<Value> eval(const Expr& expr, Scope& scope);
  Result<Value> eval_kind(const Expr& expr, Scope& scope);
  Result<Value> eval_name(const Expr& expr, Scope& scope);
  Result<Value> eval_sequence(const Expr& expr, Scope& scope);
  Result<Value> eval_dict(const Expr& expr, Scope& scope);
  Result<Value> eval_arithmetic(const Expr& expr, Scope& scope);
  Result<Value> eval_concat(const Expr& expr, Scope& scope);
  Result<Value> eval_logic(const Expr& expr, Scope& scope);
  Result<Value> eval_compare(const Expr& expr, Scope& scope);
  Result<Value> eval_conditional(const Expr& expr, Scope& scope);
  Result<Value> eval_attribute(const Expr& expr, Scope& scope);
  Result<Value> eval_item(const Expr& expr, Scope& scope);
  Result<Value> eval_slice(const Expr& expr, Scope& scope);
  Result<Value> eval_builtin(const Expr& expr, Scope& scope);
  Result<Value> eval_call(const Expr& expr, Scope& scope);
  Result<Value> call_macro(const Macro& macro, const Expr& call, Scope& scope);

  const Dict& variables_;
  Budget budget_;
  Runtime runtime_;
  Scope root_;
  std::vector<std::unique_ptr<Namespace>> namespaces_;  // live as long as the evaluator
  Value block_text_;                                    // what kBlockText stands for
  int depth_ = 0;                                       // of eval and run_block
};

}  // namespace nibble::jinja
