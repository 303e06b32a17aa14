// The parser's part for expressions, with the precedences of Jinja2's parser.py.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_ast.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_lexer.h"

namespace nibble::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // An expression, or a tuple of several with commas between. `conditional`: whether `a if b` may
  // stand in it, which it may not where a statement's own `if` follows.
  Result<ExprPtr> parse_tuple(bool conditional = true);
  Result<ExprPtr> parse_expression(bool conditional = true);
  // `| filter` chains around `subject`.
  Result<ExprPtr> parse_filters(ExprPtr subject);
  // The name that stands here. Errors: "expected <what>, found ...".
  Result<std::string> parse_name(std::string_view what);

  const Token& current() const { return tokens_[position_]; }
  const Token& ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  void advance() { position_ += position_ + 1 < tokens_.size() ? 1 : 0; }
  bool at_operator(std::string_view text) const;
  bool at_name(std::string_view text) const;
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  Status expect_operator(std::string_view text);

  tl::unexpected<Error> error(std::string_view what) const;
  tl::unexpected<Error> error_at(int line, std::string_view what) const;
  tl::unexpected<Error> unsupported_at(int line, std::string_view what) const;

  // One level of nesting, of statements or expressions, while this lives.
  class Nesting {
   public:
    explicit Nesting(int* level) : level_(level) { ++*level_; }
    ~Nesting() { --*level_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int* level_;
  };
  Status check_nesting() const;

  int level_ = 0;
  bool in_macro_ = false;
  std::vector<std::pair<std::string, int>> called_;  // names called as macros, and the line

 private:
  Result<ExprPtr> parse_or();
  Result<ExprPtr> parse_and();
  Result<ExprPtr> parse_not();
  Result<ExprPtr> parse_compare();
  Result<ExprPtr> parse_sum();
  Result<ExprPtr> parse_concat();
  Result<ExprPtr> parse_product();
  Result<ExprPtr> parse_unary(bool with_filters = true);
  Result<ExprPtr> parse_primary();
  Result<ExprPtr> parse_number();
  Result<ExprPtr> parse_list();
  Result<ExprPtr> parse_dict();
  Result<ExprPtr> parse_postfix(ExprPtr subject);
  Result<ExprPtr> parse_attribute(ExprPtr subject);
  Result<ExprPtr> parse_subscript(ExprPtr subject);
  Result<ExprPtr> parse_call(ExprPtr subject);
  Result<ExprPtr> parse_filter(ExprPtr subject);
  Result<ExprPtr> parse_test(ExprPtr subject);
  Status parse_arguments(Expr* call);
  Status bind_builtin(Expr* call, BuiltinTable table, std::string_view what, bool has_subject);
  Status check_test_names(const Expr& call) const;

  ExprPtr make(ExprKind kind, int line) const;
  // Sets the depth from the parts. Errors when it is too much for the evaluator's stack.
  Result<ExprPtr> finish(ExprPtr expr) const;

  std::vector<Token> tokens_;
  size_t position_ = 0;
};

}  // namespace nibble::jinja
