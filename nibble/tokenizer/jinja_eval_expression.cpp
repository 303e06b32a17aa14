#include <fmt/format.h>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_eval.h"
#include "nibble/tokenizer/jinja_ops.h"

namespace nibble::jinja {

Result<Value> Evaluator::eval(const Expr& expr, Scope& scope) {
  NIBBLE_TRY(budget_.spend_steps(1));
  NIBBLE_TRY(enter());
  Result<Value> value = eval_kind(expr, scope);
  leave();
  return value;
}

Result<Value> Evaluator::eval_kind(const Expr& expr, Scope& scope) {
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.constant;
    case ExprKind::kName:
      return eval_name(expr, scope);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return eval_sequence(expr, scope);
    case ExprKind::kDict:
      return eval_dict(expr, scope);
    case ExprKind::kArithmetic:
      return eval_arithmetic(expr, scope);
    case ExprKind::kConcat:
      return eval_concat(expr, scope);
    case ExprKind::kAnd:
    case ExprKind::kOr:
    case ExprKind::kNot:
    case ExprKind::kNegate:
    case ExprKind::kPlus:
      return eval_logic(expr, scope);
    case ExprKind::kCompare:
      return eval_compare(expr, scope);
    case ExprKind::kConditional:
      return eval_conditional(expr, scope);
    case ExprKind::kAttribute:
      return eval_attribute(expr, scope);
    case ExprKind::kItem:
      return eval_item(expr, scope);
    case ExprKind::kSlice:
      return eval_slice(expr, scope);
    case ExprKind::kMethod:
    case ExprKind::kFilter:
    case ExprKind::kTest:
      return eval_builtin(expr, scope);
    case ExprKind::kCall:
      return eval_call(expr, scope);
    case ExprKind::kBlockText:
      return block_text_;
  }
  NIBBLE_CHECK(false);
}

Result<Value> Evaluator::eval_name(const Expr& expr, Scope& scope) {
  if (const Value* found = scope.find(expr.name)) return *found;
  if (const Value* found = variables_.find(expr.name)) return *found;
  const bool function = find_builtin(BuiltinTable::kFunction, expr.name) != nullptr ||
                        expr.name == "namespace" || expr.name == "dict";
  if (function) return Value::opaque("a function that is not called");
  return Value::undefined(fmt::format("'{}' is undefined", expr.name));
}

Result<Value> Evaluator::eval_sequence(const Expr& expr, Scope& scope) {
  std::vector<Value> items;
  for (const ExprPtr& operand : expr.operands) {
    items.push_back(NIBBLE_TRY(eval(*operand, scope)));
  }
  return make_sequence(expr.kind == ExprKind::kList ? Kind::kList : Kind::kTuple, std::move(items),
                       budget_);
}

Result<Value> Evaluator::eval_dict(const Expr& expr, Scope& scope) {
  Dict dict;
  for (size_t i = 0; i < expr.operands.size(); i += 2) {
    const Value key = NIBBLE_TRY(eval(*expr.operands[i], scope));
    if (!key.is(Kind::kString)) {
      return unsupported(
          fmt::format("the keys of a mapping are strings, found {}", type_name(key)));
    }
    NIBBLE_TRY(budget_.spend_bytes(key.as_string().size()));
    dict.set(key.as_string(), NIBBLE_TRY(eval(*expr.operands[i + 1], scope)));
  }
  return make_dict(std::move(dict), budget_);
}

Result<Value> Evaluator::eval_arithmetic(const Expr& expr, Scope& scope) {
  Value left = NIBBLE_TRY(eval(*expr.operands[0], scope));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    const Value right = NIBBLE_TRY(eval(*expr.operands[i + 1], scope));
    left = NIBBLE_TRY(arithmetic(expr.operators[i], left, right, budget_));
  }
  return left;
}

Result<Value> Evaluator::eval_concat(const Expr& expr, Scope& scope) {
  std::string text;
  for (const ExprPtr& operand : expr.operands) {
    const Value value = NIBBLE_TRY(eval(*operand, scope));
    NIBBLE_TRY(append_text(value, budget_, text));
  }
  return make_string(std::move(text), budget_);
}

Result<Value> Evaluator::eval_logic(const Expr& expr, Scope& scope) {
  Value value = NIBBLE_TRY(eval(*expr.operands[0], scope));
  switch (expr.kind) {
    case ExprKind::kNot:
      return Value::boolean(!truthy(value));
    case ExprKind::kNegate:
      return negate(value);
    case ExprKind::kPlus:
      if (value.is(Kind::kFloat)) return value;
      return arithmetic("+", value, Value::integer(0), budget_);  // refuses what is no number
    default:
      break;
  }
  // `and` goes on while true, `or` while false; both give the last value looked at.
  for (size_t i = 1; i < expr.operands.size(); ++i) {
    if (truthy(value) != (expr.kind == ExprKind::kAnd)) break;
    value = NIBBLE_TRY(eval(*expr.operands[i], scope));
  }
  return value;
}

Result<Value> Evaluator::eval_compare(const Expr& expr, Scope& scope) {
  Value left = NIBBLE_TRY(eval(*expr.operands[0], scope));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = NIBBLE_TRY(eval(*expr.operands[i + 1], scope));
    const std::string& op = expr.operators[i];
    bool holds = false;
    if (op == "==") {
      holds = NIBBLE_TRY(equal(left, right, budget_));
    } else if (op == "!=") {
      holds = !NIBBLE_TRY(equal(left, right, budget_));
    } else if (op == "in") {
      holds = NIBBLE_TRY(contains(right, left, budget_));
    } else if (op == "not in") {
      holds = !NIBBLE_TRY(contains(right, left, budget_));
    } else if (op == "<") {
      holds = NIBBLE_TRY(less(left, right, budget_));
    } else if (op == ">") {
      holds = NIBBLE_TRY(less(right, left, budget_));
    } else {
      // Not "not greater", which differs for NaN.
      const Value& low = op == "<=" ? left : right;
      const Value& high = op == "<=" ? right : left;
      holds = NIBBLE_TRY(less(low, high, budget_)) || NIBBLE_TRY(equal(low, high, budget_));
    }
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Result<Value> Evaluator::eval_conditional(const Expr& expr, Scope& scope) {
  if (truthy(NIBBLE_TRY(eval(*expr.operands[0], scope)))) return eval(*expr.operands[1], scope);
  if (expr.operands[2] != nullptr) return eval(*expr.operands[2], scope);
  return Value::undefined("the inline if was false and has no else");
}

Result<Value> Evaluator::eval_attribute(const Expr& expr, Scope& scope) {
  const Value subject = NIBBLE_TRY(eval(*expr.operands[0], scope));
  if (subject.is(Kind::kLoop)) return loop_attribute(subject.as_loop(), expr.name);
  return get_attribute(subject, expr.name);
}

Result<Value> Evaluator::eval_item(const Expr& expr, Scope& scope) {
  const Value subject = NIBBLE_TRY(eval(*expr.operands[0], scope));
  const Value key = NIBBLE_TRY(eval(*expr.operands[1], scope));
  if (subject.is(Kind::kLoop) && key.is(Kind::kString)) {
    return loop_attribute(subject.as_loop(), key.as_string());
  }
  return get_item(subject, key, budget_);
}

Result<Value> Evaluator::eval_slice(const Expr& expr, Scope& scope) {
  const Value subject = NIBBLE_TRY(eval(*expr.operands[0], scope));
  Value parts[3] = {Value::none(), Value::none(), Value::none()};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.operands[i + 1] != nullptr) parts[i] = NIBBLE_TRY(eval(*expr.operands[i + 1], scope));
  }
  return get_slice(subject, parts[0], parts[1], parts[2], budget_);
}

Result<Value> Evaluator::eval_builtin(const Expr& expr, Scope& scope) {
  const Value subject = NIBBLE_TRY(eval(*expr.operands[0], scope));
  std::vector<Value> positional;
  for (size_t i = 1; i < expr.operands.size(); ++i) {
    positional.push_back(NIBBLE_TRY(eval(*expr.operands[i], scope)));
  }
  std::vector<std::pair<std::string_view, Value>> named;
  for (const auto& [name, value] : expr.named) {
    named.emplace_back(name, NIBBLE_TRY(eval(*value, scope)));
  }
  return call_builtin(*expr.builtin, runtime_, subject, std::move(positional), std::move(named));
}

Result<Value> Evaluator::eval_call(const Expr& expr, Scope& scope) {
  const Value* shadow = scope.find(expr.name);
  if (shadow == nullptr) shadow = variables_.find(expr.name);
  if (shadow != nullptr) {
    if (shadow->is(Kind::kMacro)) return call_macro(shadow->as_macro(), expr, scope);
    return invalid_argument(
        fmt::format("'{}' is a {} and can't be called", expr.name, type_name(*shadow)));
  }
  const bool makes_namespace = expr.name == "namespace";
  if (expr.builtin == nullptr && !makes_namespace && expr.name != "dict") {
    return invalid_argument(fmt::format("'{}' is undefined", expr.name));
  }
  if (expr.builtin != nullptr) {
    std::vector<Value> positional;
    for (const ExprPtr& operand : expr.operands) {
      positional.push_back(NIBBLE_TRY(eval(*operand, scope)));
    }
    std::vector<std::pair<std::string_view, Value>> named;
    for (const auto& [name, value] : expr.named) {
      named.emplace_back(name, NIBBLE_TRY(eval(*value, scope)));
    }
    return call_builtin(*expr.builtin, runtime_, Value(), std::move(positional), std::move(named));
  }
  Dict dict;
  for (const auto& [name, value] : expr.named) {
    NIBBLE_TRY(budget_.spend_bytes(name.size()));
    dict.set(name, NIBBLE_TRY(eval(*value, scope)));
  }
  if (!makes_namespace) return make_dict(std::move(dict), budget_);
  NIBBLE_TRY(budget_.spend_bytes(sizeof(Namespace)));
  namespaces_.push_back(std::make_unique<Namespace>(Namespace{std::move(dict)}));
  return Value::space(namespaces_.back().get());
}

Result<Value> Evaluator::call_macro(const Macro& macro, const Expr& call, Scope& scope) {
  if (call.operands.size() > macro.parameters.size()) {
    return invalid_argument(fmt::format("macro '{}' takes at most {} arguments, found {}",
                                        macro.name, macro.parameters.size(), call.operands.size()));
  }
  // A macro sees the variables of the template, not those of its caller.
  Scope inner(&root_);
  std::vector<std::optional<Value>> given(macro.parameters.size());
  for (size_t i = 0; i < call.operands.size(); ++i) {
    given[i] = NIBBLE_TRY(eval(*call.operands[i], scope));
  }
  for (const auto& [name, value] : call.named) {
    size_t i = 0;
    while (i < given.size() && macro.parameters[i].name != name) ++i;
    if (i == given.size()) {
      return invalid_argument(fmt::format("macro '{}' has no parameter '{}'", macro.name, name));
    }
    if (given[i]) {
      return invalid_argument(fmt::format("macro '{}' is given '{}' twice", macro.name, name));
    }
    given[i] = NIBBLE_TRY(eval(*value, scope));
  }
  for (size_t i = 0; i < given.size(); ++i) {
    const MacroParameter& parameter = macro.parameters[i];
    if (!given[i]) {
      given[i] =
          parameter.otherwise != nullptr
              ? NIBBLE_TRY(eval(*parameter.otherwise, inner))
              : Value::undefined(fmt::format("parameter '{}' was not provided", parameter.name));
    }
    inner.set(parameter.name, *std::move(given[i]));
  }
  std::string text;
  NIBBLE_TRY(run_block(macro.body, inner, text));
  return make_string(std::move(text), budget_);
}

Result<Value> Evaluator::loop_attribute(Loop& loop, std::string_view name) {
  const auto index0 = static_cast<int64_t>(loop.index0);
  if (name == "index") return Value::integer(index0 + 1);
  if (name == "index0") return Value::integer(index0);
  if (name == "first") return Value::boolean(index0 == 0);
  if (name == "depth") return Value::integer(1);  // recursive loops are not supported
  if (name == "depth0") return Value::integer(0);
  if (name == "previtem") {
    return loop.index0 > 0 ? loop.passed[loop.index0 - 1]
                           : Value::undefined("there is no previous item");
  }
  if (name == "last" || name == "nextitem") {
    const bool more = NIBBLE_TRY(advance_loop(loop, loop.index0 + 2));
    if (name == "last") return Value::boolean(!more);
    return more ? loop.passed[loop.index0 + 1] : Value::undefined("there is no next item");
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    NIBBLE_TRY(advance_loop(loop, loop.source.size() + 1));
    const auto length = static_cast<int64_t>(loop.passed.size());
    if (name == "length") return Value::integer(length);
    return Value::integer(length - index0 - (name == "revindex0" ? 1 : 0));
  }
  return Value::undefined(fmt::format("loop has no attribute '{}'", name));
}

}  // namespace nibble::jinja
