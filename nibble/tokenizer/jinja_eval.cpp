// Statements; expressions are in jinja_eval_expression.cpp.
#include "nibble/tokenizer/jinja_eval.h"

#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_parser.h"
#include "nibble/tokenizer/jinja_template.h"

namespace nibble::jinja {
namespace {

// Expressions, blocks and macro calls inside of one another. Each level takes three or four calls,
// about 1 KB of stack, or 4 KB under AddressSanitizer.
constexpr int kMaxDepth = 400;

// result with "line 3: " in front of its error, unless a line is there already: the innermost
// statement knows best.
template <typename T>
Result<T> at_line(Result<T> result, int line) {
  if (result || result.error().message.starts_with("line ")) return result;
  return tl::unexpected(std::move(result).error().with_context(fmt::format("line {}", line)));
}

}  // namespace

struct Program {
  Block block;
};

Result<Template> Template::parse(std::string_view source) {
  return Template(std::make_shared<const Program>(Program{NIBBLE_TRY(parse_template(source))}));
}

Result<std::string> Template::render(const Dict& variables, const RenderOptions& options) const {
  Evaluator evaluator(variables, options.limits, options.now.value_or(std::time(nullptr)));
  return evaluator.run(program_->block);
}

Result<std::string> Evaluator::run(const Block& block) {
  std::string out;
  NIBBLE_TRY(run_block(block, root_, out));
  return out;
}

Status Evaluator::enter() {
  if (++depth_ <= kMaxDepth) return {};
  return invalid_argument(fmt::format("calls and expressions nest deeper than {}", kMaxDepth));
}

Result<Evaluator::Flow> Evaluator::run_block(const Block& block, Scope& scope, std::string& out) {
  NIBBLE_TRY(enter());
  for (const Stmt& statement : block) {
    NIBBLE_TRY(budget_.spend_steps(1));
    const Flow flow = NIBBLE_TRY(at_line(run_statement(statement, scope, out), statement.line));
    if (flow != Flow::kNext) {
      leave();
      return flow;
    }
  }
  leave();
  return Flow::kNext;
}

Result<Evaluator::Flow> Evaluator::run_statement(const Stmt& statement, Scope& scope,
                                                 std::string& out) {
  switch (statement.kind) {
    case StmtKind::kText:
      NIBBLE_TRY(budget_.spend_bytes(statement.text.size()));
      out += statement.text;
      NIBBLE_TRY(budget_.check_output(out.size()));
      break;
    case StmtKind::kPrint:
      NIBBLE_TRY(print(statement, scope, out));
      break;
    case StmtKind::kIf:
      return run_if(statement, scope, out);
    case StmtKind::kFor:
      return run_for(statement, scope, out);
    case StmtKind::kSet:
    case StmtKind::kSetBlock:
      NIBBLE_TRY(run_set(statement, scope));
      break;
    case StmtKind::kMacro:
      scope.set(statement.macro->name, Value::macro(statement.macro.get()));
      break;
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Status Evaluator::print(const Stmt& statement, Scope& scope, std::string& out) {
  const Value value = NIBBLE_TRY(eval(*statement.expr, scope));
  NIBBLE_TRY(append_text(value, budget_, out));
  return budget_.check_output(out.size());
}

Result<Evaluator::Flow> Evaluator::run_if(const Stmt& statement, Scope& scope, std::string& out) {
  for (const Branch& branch : statement.branches) {
    if (branch.condition != nullptr && !truthy(NIBBLE_TRY(eval(*branch.condition, scope)))) {
      continue;
    }
    return run_block(branch.body, scope, out);
  }
  return Flow::kNext;
}

Result<Evaluator::Flow> Evaluator::run_for(const Stmt& statement, Scope& scope, std::string& out) {
  const Value items = NIBBLE_TRY(eval(*statement.expr, scope));
  auto loop = std::make_shared<Loop>();
  loop->depth = items.depth();
  loop->source = NIBBLE_TRY(iterate(items, budget_));
  loop->statement = &statement;
  loop->outer = &scope;
  bool walked = false;
  while (NIBBLE_TRY(advance_loop(*loop, loop->index0 + 1))) {
    walked = true;
    NIBBLE_TRY(budget_.spend_steps(1));
    Scope body(&scope);
    NIBBLE_TRY(assign(statement.target, loop->passed[loop->index0], body));
    body.set("loop", Value::loop(loop));
    const Flow flow = NIBBLE_TRY(run_block(statement.branches[0].body, body, out));
    if (flow == Flow::kBreak) break;
    ++loop->index0;
  }
  loop->outer = nullptr;
  if (walked || statement.branches.size() < 2) return Flow::kNext;
  Scope otherwise(&scope);
  return run_block(statement.branches[1].body, otherwise, out);
}

Result<bool> Evaluator::advance_loop(Loop& loop, size_t count) {
  while (loop.passed.size() < count) {
    if (loop.outer == nullptr || loop.next == loop.source.size()) return false;
    const Value item = loop.source[loop.next++];
    if (const Expr* test = loop.statement->test.get()) {
      Scope scope(loop.outer);
      NIBBLE_TRY(assign(loop.statement->target, item, scope));
      if (!truthy(NIBBLE_TRY(eval(*test, scope)))) continue;
    }
    loop.passed.push_back(item);
  }
  return true;
}

Status Evaluator::run_set(const Stmt& statement, Scope& scope) {
  if (statement.kind == StmtKind::kSet) {
    return assign(statement.target, NIBBLE_TRY(eval(*statement.expr, scope)), scope);
  }
  std::string text;
  Scope body(&scope);
  NIBBLE_TRY(run_block(statement.branches[0].body, body, text));
  block_text_ = NIBBLE_TRY(make_string(std::move(text), budget_));
  return assign(statement.target, NIBBLE_TRY(eval(*statement.expr, scope)), scope);
}

Status Evaluator::assign(const Target& target, Value value, Scope& scope) {
  if (!target.parts.empty()) {
    const std::vector<Value> items = NIBBLE_TRY(iterate(value, budget_));
    if (items.size() != target.parts.size()) {
      return invalid_argument(
          fmt::format("{} names for {} values", target.parts.size(), items.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      NIBBLE_TRY(assign(target.parts[i], items[i], scope));
    }
    return {};
  }
  if (target.attribute.empty()) {
    scope.set(target.name, std::move(value));
    return {};
  }
  const Value* space = scope.find(target.name);
  if (space == nullptr || !space->is(Kind::kNamespace)) {
    return invalid_argument(fmt::format("'{}' is not a namespace, so {}.{} can't be set",
                                        target.name, target.name, target.attribute));
  }
  NIBBLE_TRY(budget_.spend_bytes(target.attribute.size() + sizeof(Value)));
  space->as_namespace().attributes.set(target.attribute, std::move(value));
  return {};
}

}  // namespace nibble::jinja
