#include "nibble/tokenizer/jinja_expression_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "nibble/base/error.h"

namespace nibble::jinja {
namespace {

// Bounds the parser's recursion; each level of parentheses passes through a dozen functions.
constexpr int kMaxNesting = 100;
// Bounds the evaluator's recursion through one expression; see kMaxEvalDepth in jinja_eval.cpp.
constexpr int kMaxExprDepth = 80;

constexpr std::array<std::string_view, 11> kLoopAttributes = {
    "index",  "index0",   "revindex", "revindex0", "first", "last",
    "length", "previtem", "nextitem", "depth",     "depth0"};

bool known_loop_attribute(std::string_view name) {
  return std::find(kLoopAttributes.begin(), kLoopAttributes.end(), name) != kLoopAttributes.end();
}

}  // namespace

bool ExpressionParser::at_operator(std::string_view text) const {
  return current().kind == TokenKind::kOperator && current().text == text;
}

bool ExpressionParser::at_name(std::string_view text) const {
  return current().kind == TokenKind::kName && current().text == text;
}

bool ExpressionParser::skip_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  advance();
  return true;
}

bool ExpressionParser::skip_name(std::string_view text) {
  if (!at_name(text)) return false;
  advance();
  return true;
}

Status ExpressionParser::expect_operator(std::string_view text) {
  if (skip_operator(text)) return {};
  return error(fmt::format("expected '{}', found {}", text, describe(current())));
}

tl::unexpected<Error> ExpressionParser::error(std::string_view what) const {
  return error_at(current().line, what);
}

tl::unexpected<Error> ExpressionParser::error_at(int line, std::string_view what) const {
  return invalid_argument(fmt::format("line {}: {}", line, what));
}

tl::unexpected<Error> ExpressionParser::unsupported_at(int line, std::string_view what) const {
  return unsupported(fmt::format("line {}: {}", line, what));
}

Status ExpressionParser::check_nesting() const {
  if (level_ <= kMaxNesting) return {};
  return unsupported_at(current().line, fmt::format("nesting deeper than {}", kMaxNesting));
}

ExprPtr ExpressionParser::make(ExprKind kind, int line) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

Result<ExprPtr> ExpressionParser::finish(ExprPtr expr) const {
  for (const ExprPtr& operand : expr->operands) {
    if (operand != nullptr) expr->depth = std::max(expr->depth, 1 + operand->depth);
  }
  for (const auto& [name, value] : expr->named) {
    expr->depth = std::max(expr->depth, 1 + value->depth);
  }
  if (expr->depth > kMaxExprDepth) {
    return unsupported_at(expr->line, fmt::format("an expression of more than {} levels; use a set "
                                                  "statement for a part of it",
                                                  kMaxExprDepth));
  }
  return expr;
}

Result<std::string> ExpressionParser::parse_name(std::string_view what) {
  if (current().kind != TokenKind::kName) {
    return error(fmt::format("expected {}, found {}", what, describe(current())));
  }
  std::string name = current().text;
  advance();
  return name;
}

Result<ExprPtr> ExpressionParser::parse_tuple(bool conditional) {
  const int line = current().line;
  ExprPtr first = NIBBLE_TRY(parse_expression(conditional));
  if (!at_operator(",")) return first;
  ExprPtr tuple = make(ExprKind::kTuple, line);
  tuple->operands.push_back(std::move(first));
  while (skip_operator(",")) {
    const bool ends = at_operator(")") || current().kind == TokenKind::kVariableEnd ||
                      current().kind == TokenKind::kBlockEnd;
    if (ends) break;
    tuple->operands.push_back(NIBBLE_TRY(parse_expression(conditional)));
  }
  return finish(std::move(tuple));
}

Result<ExprPtr> ExpressionParser::parse_expression(bool conditional) {
  const Nesting nesting(&level_);
  NIBBLE_TRY(check_nesting());
  const int line = current().line;
  ExprPtr value = NIBBLE_TRY(parse_or());
  while (conditional && skip_name("if")) {
    ExprPtr expr = make(ExprKind::kConditional, line);
    expr->operands.push_back(NIBBLE_TRY(parse_or()));
    expr->operands.push_back(std::move(value));
    expr->operands.push_back(skip_name("else") ? NIBBLE_TRY(parse_expression()) : nullptr);
    value = NIBBLE_TRY(finish(std::move(expr)));
  }
  return value;
}

Result<ExprPtr> ExpressionParser::parse_or() {
  ExprPtr first = NIBBLE_TRY(parse_and());
  if (!at_name("or")) return first;
  ExprPtr expr = make(ExprKind::kOr, current().line);
  expr->operands.push_back(std::move(first));
  while (skip_name("or")) expr->operands.push_back(NIBBLE_TRY(parse_and()));
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_and() {
  ExprPtr first = NIBBLE_TRY(parse_not());
  if (!at_name("and")) return first;
  ExprPtr expr = make(ExprKind::kAnd, current().line);
  expr->operands.push_back(std::move(first));
  while (skip_name("and")) expr->operands.push_back(NIBBLE_TRY(parse_not()));
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(&level_);
  NIBBLE_TRY(check_nesting());
  ExprPtr expr = make(ExprKind::kNot, current().line);
  advance();
  expr->operands.push_back(NIBBLE_TRY(parse_not()));
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_compare() {
  ExprPtr expr = make(ExprKind::kCompare, current().line);
  expr->operands.push_back(NIBBLE_TRY(parse_sum()));
  while (true) {
    std::string op;
    for (const std::string_view symbol : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (at_operator(symbol)) op = symbol;
    }
    if (at_name("in")) op = "in";
    if (at_name("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
      op = "not in";
      advance();
    }
    if (op.empty()) break;
    advance();
    expr->operators.push_back(std::move(op));
    expr->operands.push_back(NIBBLE_TRY(parse_sum()));
  }
  if (expr->operators.empty()) return std::move(expr->operands[0]);
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_sum() {
  ExprPtr expr = make(ExprKind::kArithmetic, current().line);
  expr->operands.push_back(NIBBLE_TRY(parse_concat()));
  while (at_operator("+") || at_operator("-")) {
    expr->operators.push_back(current().text);
    advance();
    expr->operands.push_back(NIBBLE_TRY(parse_concat()));
  }
  if (expr->operators.empty()) return std::move(expr->operands[0]);
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_concat() {
  ExprPtr first = NIBBLE_TRY(parse_product());
  if (!at_operator("~")) return first;
  ExprPtr expr = make(ExprKind::kConcat, current().line);
  expr->operands.push_back(std::move(first));
  while (skip_operator("~")) expr->operands.push_back(NIBBLE_TRY(parse_product()));
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_product() {
  ExprPtr expr = make(ExprKind::kArithmetic, current().line);
  expr->operands.push_back(NIBBLE_TRY(parse_unary()));
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    expr->operators.push_back(current().text);
    advance();
    expr->operands.push_back(NIBBLE_TRY(parse_unary()));
  }
  if (at_operator("**")) return unsupported_at(current().line, "unsupported operator '**'");
  if (expr->operators.empty()) return std::move(expr->operands[0]);
  return finish(std::move(expr));
}

Result<ExprPtr> ExpressionParser::parse_unary(bool with_filters) {
  const Nesting nesting(&level_);
  NIBBLE_TRY(check_nesting());
  ExprPtr expr;
  if (at_operator("-") || at_operator("+")) {
    expr = make(at_operator("-") ? ExprKind::kNegate : ExprKind::kPlus, current().line);
    advance();
    expr->operands.push_back(NIBBLE_TRY(parse_unary(false)));
    expr = NIBBLE_TRY(finish(std::move(expr)));
  } else {
    expr = NIBBLE_TRY(parse_primary());
  }
  expr = NIBBLE_TRY(parse_postfix(std::move(expr)));
  while (with_filters) {
    if (at_operator("|")) {
      expr = NIBBLE_TRY(parse_filter(std::move(expr)));
    } else if (at_name("is")) {
      expr = NIBBLE_TRY(parse_test(std::move(expr)));
    } else if (at_operator("(")) {
      expr = NIBBLE_TRY(parse_call(std::move(expr)));
    } else {
      break;
    }
  }
  return expr;
}

Result<ExprPtr> ExpressionParser::parse_primary() {
  const int line = current().line;
  ExprPtr expr = make(ExprKind::kConstant, line);
  switch (current().kind) {
    case TokenKind::kName: {
      const std::string name = current().text;
      advance();
      if (name == "true" || name == "True") {
        expr->constant = Value::boolean(true);
      } else if (name == "false" || name == "False") {
        expr->constant = Value::boolean(false);
      } else if (name == "none" || name == "None") {
        expr->constant = Value::none();
      } else if (name == "self" ||
                 (in_macro_ && (name == "varargs" || name == "kwargs" || name == "caller"))) {
        return unsupported_at(line, fmt::format("unsupported variable '{}'", name));
      } else {
        expr->kind = ExprKind::kName;
        expr->name = name;
      }
      return expr;
    }
    case TokenKind::kString: {
      std::string text;
      for (; current().kind == TokenKind::kString; advance()) text += current().text;
      expr->constant = Value::string(std::move(text));
      return expr;
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return parse_number();
    default:
      break;
  }
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  if (!skip_operator("(")) {
    return error(fmt::format("expected an expression, found {}", describe(current())));
  }
  if (skip_operator(")")) return make(ExprKind::kTuple, line);
  ExprPtr inner = NIBBLE_TRY(parse_tuple());
  NIBBLE_TRY(expect_operator(")"));
  return inner;
}

Result<ExprPtr> ExpressionParser::parse_number() {
  ExprPtr expr = make(ExprKind::kConstant, current().line);
  const std::string& text = current().text;
  const char* const end = text.data() + text.size();
  if (current().kind == TokenKind::kInteger) {
    int64_t value = 0;
    if (std::from_chars(text.data(), end, value).ec != std::errc()) {
      return unsupported_at(current().line, fmt::format("the integer {} is beyond 64 bits", text));
    }
    expr->constant = Value::integer(value);
  } else {
    double value = 0;
    if (std::from_chars(text.data(), end, value).ec != std::errc()) {
      return unsupported_at(current().line, fmt::format("the number {} is out of range", text));
    }
    expr->constant = Value::real(value);
  }
  advance();
  return expr;
}

Result<ExprPtr> ExpressionParser::parse_list() {
  ExprPtr list = make(ExprKind::kList, current().line);
  advance();
  while (!at_operator("]")) {
    if (!list->operands.empty()) {
      NIBBLE_TRY(expect_operator(","));
      if (at_operator("]")) break;
    }
    list->operands.push_back(NIBBLE_TRY(parse_expression()));
  }
  advance();
  return finish(std::move(list));
}

Result<ExprPtr> ExpressionParser::parse_dict() {
  ExprPtr dict = make(ExprKind::kDict, current().line);
  advance();
  while (!at_operator("}")) {
    if (!dict->operands.empty()) {
      NIBBLE_TRY(expect_operator(","));
      if (at_operator("}")) break;
    }
    ExprPtr key = NIBBLE_TRY(parse_expression());
    if (key->kind == ExprKind::kConstant && !key->constant.is(Kind::kString)) {
      return unsupported_at(key->line, "the keys of a mapping are strings");
    }
    dict->operands.push_back(std::move(key));
    NIBBLE_TRY(expect_operator(":"));
    dict->operands.push_back(NIBBLE_TRY(parse_expression()));
  }
  advance();
  return finish(std::move(dict));
}

Result<ExprPtr> ExpressionParser::parse_postfix(ExprPtr subject) {
  while (true) {
    if (at_operator(".")) {
      subject = NIBBLE_TRY(parse_attribute(std::move(subject)));
    } else if (at_operator("[")) {
      subject = NIBBLE_TRY(parse_subscript(std::move(subject)));
    } else if (at_operator("(")) {
      subject = NIBBLE_TRY(parse_call(std::move(subject)));
    } else {
      return subject;
    }
  }
}

Result<ExprPtr> ExpressionParser::parse_attribute(ExprPtr subject) {
  const int line = current().line;
  advance();
  if (current().kind == TokenKind::kInteger) {
    ExprPtr item = make(ExprKind::kItem, line);
    item->operands.push_back(std::move(subject));
    item->operands.push_back(NIBBLE_TRY(parse_number()));
    return finish(std::move(item));
  }
  const std::string name = NIBBLE_TRY(parse_name("a name or number after '.'"));
  if (name.starts_with("__")) {
    return unsupported_at(line, fmt::format("unsupported attribute '{}'", name));
  }
  const bool of_loop = subject->kind == ExprKind::kName && subject->name == "loop";
  if (of_loop && !known_loop_attribute(name)) {
    return unsupported_at(line, fmt::format("unsupported attribute 'loop.{}'; supported: {}", name,
                                            fmt::join(kLoopAttributes, ", ")));
  }
  ExprPtr attribute = make(ExprKind::kAttribute, line);
  attribute->name = name;
  attribute->operands.push_back(std::move(subject));
  return finish(std::move(attribute));
}

Result<ExprPtr> ExpressionParser::parse_subscript(ExprPtr subject) {
  const int line = current().line;
  advance();
  ExprPtr parts[3];
  bool slice = false;
  if (!at_operator(":")) parts[0] = NIBBLE_TRY(parse_expression());
  for (size_t i = 1; i < 3 && skip_operator(":"); ++i) {
    slice = true;
    if (!at_operator(":") && !at_operator("]")) parts[i] = NIBBLE_TRY(parse_expression());
  }
  if (at_operator(",")) return unsupported_at(line, "unsupported subscript with a comma");
  NIBBLE_TRY(expect_operator("]"));
  ExprPtr expr = make(slice ? ExprKind::kSlice : ExprKind::kItem, line);
  expr->operands.push_back(std::move(subject));
  expr->operands.push_back(std::move(parts[0]));
  if (slice) {
    expr->operands.push_back(std::move(parts[1]));
    expr->operands.push_back(std::move(parts[2]));
  }
  return finish(std::move(expr));
}

// Adds positional arguments to call->operands and the others to call->named.
Status ExpressionParser::parse_arguments(Expr* call) {
  const int line = current().line;
  NIBBLE_TRY(expect_operator("("));
  bool first = true;
  while (!at_operator(")")) {
    if (!std::exchange(first, false)) {
      NIBBLE_TRY(expect_operator(","));
      if (at_operator(")")) break;
    }
    if (at_operator("*") || at_operator("**")) {
      return unsupported_at(line,
                            fmt::format("unsupported '{}' before an argument", current().text));
    }
    const bool named = current().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator &&
                       ahead().text == "=";
    if (named) {
      std::string name = current().text;
      for (const auto& [other, unused] : call->named) {
        if (other == name) return error(fmt::format("argument '{}' is given twice", name));
      }
      advance();
      advance();
      ExprPtr value = NIBBLE_TRY(parse_expression());
      call->named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call->named.empty()) return error("a positional argument after a named one");
      call->operands.push_back(NIBBLE_TRY(parse_expression()));
    }
  }
  advance();
  return {};
}

Result<ExprPtr> ExpressionParser::parse_call(ExprPtr subject) {
  const int line = subject->line;
  if (subject->kind == ExprKind::kAttribute) {
    ExprPtr call = make(ExprKind::kMethod, line);
    call->name = subject->name;
    call->operands = std::move(subject->operands);
    NIBBLE_TRY(parse_arguments(call.get()));
    NIBBLE_TRY(bind_builtin(call.get(), BuiltinTable::kMethod, "method", true));
    return finish(std::move(call));
  }
  if (subject->kind != ExprKind::kName) {
    return unsupported_at(line, "only names and methods can be called");
  }
  ExprPtr call = make(ExprKind::kCall, line);
  call->name = subject->name;
  NIBBLE_TRY(parse_arguments(call.get()));
  if (find_builtin(BuiltinTable::kFunction, call->name) != nullptr) {
    NIBBLE_TRY(bind_builtin(call.get(), BuiltinTable::kFunction, "function", false));
  } else if (call->name == "namespace" || call->name == "dict") {
    if (!call->operands.empty()) {
      return unsupported_at(line, fmt::format("{} takes name=value arguments only", call->name));
    }
  } else {
    called_.emplace_back(call->name, line);
  }
  return finish(std::move(call));
}

// Finds the builtin of call->name and checks the number and names of the arguments.
Status ExpressionParser::bind_builtin(Expr* call, BuiltinTable table, std::string_view what,
                                      bool has_subject) {
  call->builtin = find_builtin(table, call->name);
  if (call->builtin == nullptr) {
    return unsupported_at(call->line, fmt::format("unsupported {} '{}'; supported: {}", what,
                                                  call->name, builtin_names(table)));
  }
  std::vector<std::string> named;
  for (const auto& [name, unused] : call->named) named.push_back(name);
  const std::string wrong =
      check_arguments(*call->builtin, call->operands.size() - (has_subject ? 1 : 0), named);
  if (!wrong.empty()) {
    return unsupported_at(call->line, fmt::format("{} '{}' {}", what, call->name, wrong));
  }
  return {};
}

Result<ExprPtr> ExpressionParser::parse_filters(ExprPtr subject) {
  while (at_operator("|")) subject = NIBBLE_TRY(parse_filter(std::move(subject)));
  return subject;
}

Result<ExprPtr> ExpressionParser::parse_filter(ExprPtr subject) {
  const int line = current().line;
  advance();
  ExprPtr filter = make(ExprKind::kFilter, line);
  filter->name = NIBBLE_TRY(parse_name("the name of a filter"));
  filter->operands.push_back(std::move(subject));
  if (at_operator("(")) NIBBLE_TRY(parse_arguments(filter.get()));
  NIBBLE_TRY(bind_builtin(filter.get(), BuiltinTable::kFilter, "filter", true));
  NIBBLE_TRY(check_test_names(*filter));
  // Jinja's Markup escapes what is joined to it, so `safe` is harmless only as the last thing that
  // happens to a value.
  const bool last = current().kind == TokenKind::kVariableEnd;
  if (filter->name == "safe" && !last) {
    return unsupported_at(line, "filter 'safe' is supported only at the end of {{ }}");
  }
  return finish(std::move(filter));
}

// The tests and filters that select, reject and map name in strings have to exist too.
Status ExpressionParser::check_test_names(const Expr& call) const {
  const bool by_attribute = call.name == "selectattr" || call.name == "rejectattr";
  if (!by_attribute && call.name != "select" && call.name != "reject" && call.name != "map") {
    return {};
  }
  const size_t at = by_attribute ? 2 : 1;
  if (call.operands.size() <= at) return {};
  const Expr& name = *call.operands[at];
  if (name.kind != ExprKind::kConstant || !name.constant.is(Kind::kString)) {
    return unsupported_at(call.line,
                          fmt::format("filter '{}' needs a name in quotes there", call.name));
  }
  const BuiltinTable table = call.name == "map" ? BuiltinTable::kFilter : BuiltinTable::kTest;
  if (find_builtin(table, name.constant.as_string()) != nullptr) return {};
  return unsupported_at(call.line, fmt::format("unsupported {} '{}'; supported: {}",
                                               call.name == "map" ? "filter" : "test",
                                               name.constant.as_string(), builtin_names(table)));
}

Result<ExprPtr> ExpressionParser::parse_test(ExprPtr subject) {
  const int line = current().line;
  advance();
  const bool negated = skip_name("not");
  ExprPtr test = make(ExprKind::kTest, line);
  test->name = NIBBLE_TRY(parse_name("the name of a test"));
  test->operands.push_back(std::move(subject));
  const bool argument_follows =
      (current().kind == TokenKind::kName && !at_name("else") && !at_name("or") &&
       !at_name("and")) ||
      current().kind == TokenKind::kString || current().kind == TokenKind::kInteger ||
      current().kind == TokenKind::kFloat || at_operator("[") || at_operator("{");
  if (at_operator("(")) {
    NIBBLE_TRY(parse_arguments(test.get()));
  } else if (argument_follows) {
    if (at_name("is")) return error("tests can't be chained with 'is'");
    // `x is defined if y`: the if belongs to the expression, not to the test. Jinja takes it for an
    // argument and fails; so does this, at the argument check.
    ExprPtr argument = NIBBLE_TRY(parse_primary());
    test->operands.push_back(NIBBLE_TRY(parse_postfix(std::move(argument))));
  }
  NIBBLE_TRY(bind_builtin(test.get(), BuiltinTable::kTest, "test", true));
  test = NIBBLE_TRY(finish(std::move(test)));
  if (!negated) return test;
  ExprPtr expr = make(ExprKind::kNot, line);
  expr->operands.push_back(std::move(test));
  return finish(std::move(expr));
}

}  // namespace nibble::jinja
