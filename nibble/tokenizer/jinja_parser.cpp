#include "nibble/tokenizer/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_expression_parser.h"

namespace nibble::jinja {
namespace {

constexpr std::string_view kStatements = "if, for, set, macro, break, continue, raw";

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Result<Block> run() {
    Block block = NIBBLE_TRY(parse_block({}));
    if (current().kind != TokenKind::kEnd) {
      return error(fmt::format("unexpected {}", describe(current())));
    }
    for (const auto& [name, line] : called_) {
      if (macros_.contains(name)) continue;
      return unsupported_at(line, fmt::format("unsupported function '{}'; supported: macros of "
                                              "this template, dict, namespace, {}",
                                              name, builtin_names(BuiltinTable::kFunction)));
    }
    return block;
  }

 private:
  // Statements up to a block that begins with one of `ends`, whose name is then the current token;
  // without ends, up to the end of the template.
  Result<Block> parse_block(const std::vector<std::string_view>& ends) {
    const Nesting nesting(&level_);
    NIBBLE_TRY(check_nesting());
    Block block;
    while (current().kind != TokenKind::kEnd) {
      const int line = current().line;
      if (current().kind == TokenKind::kText) {
        block.push_back(make(StmtKind::kText));
        block.back().text = current().text;
        advance();
      } else if (current().kind == TokenKind::kVariableBegin) {
        advance();
        block.push_back(make(StmtKind::kPrint));
        block.back().line = line;
        block.back().expr = NIBBLE_TRY(parse_tuple());
        NIBBLE_TRY(expect_end(TokenKind::kVariableEnd, "}}"));
      } else {
        advance();  // the lexer leaves nothing but {% here
        if (current().kind == TokenKind::kName &&
            std::find(ends.begin(), ends.end(), current().text) != ends.end()) {
          return block;
        }
        block.push_back(NIBBLE_TRY(parse_statement()));
        NIBBLE_TRY(expect_end(TokenKind::kBlockEnd, "%}"));
      }
    }
    if (!ends.empty()) {
      return error(
          fmt::format("expected '{}', found the end of the template", fmt::join(ends, "' or '")));
    }
    return block;
  }

  // "%}" and a block up to one of `ends`, which stays the current token.
  Result<Block> parse_body(const std::vector<std::string_view>& ends) {
    skip_operator(":");
    NIBBLE_TRY(expect_end(TokenKind::kBlockEnd, "%}"));
    return parse_block(ends);
  }

  Status expect_end(TokenKind kind, std::string_view text) {
    if (current().kind != kind) {
      return error(fmt::format("expected '{}', found {}", text, describe(current())));
    }
    advance();
    return {};
  }

  Result<Stmt> parse_statement() {
    const int line = current().line;
    const std::string name = NIBBLE_TRY(parse_name("the name of a statement"));
    if (name == "if") return parse_if(line);
    if (name == "for") return parse_for(line);
    if (name == "set") return parse_set(line);
    if (name == "macro") return parse_macro(line);
    if (name == "break" || name == "continue") {
      if (loop_level_ == 0) return error_at(line, fmt::format("'{}' outside of a loop", name));
      return make(name == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
    }
    if (name.starts_with("end") || name == "else" || name == "elif") {
      return error_at(line, fmt::format("unexpected '{}'", name));
    }
    return unsupported_at(
        line, fmt::format("unsupported statement '{}'; supported: {}", name, kStatements));
  }

  Result<Stmt> parse_if(int line) {
    Stmt statement = make(StmtKind::kIf, line);
    while (true) {
      Branch branch;
      branch.condition = NIBBLE_TRY(parse_tuple(false));
      branch.body = NIBBLE_TRY(parse_body({"elif", "else", "endif"}));
      statement.branches.push_back(std::move(branch));
      if (skip_name("elif")) continue;
      if (skip_name("else")) {
        statement.branches.push_back({nullptr, NIBBLE_TRY(parse_body({"endif"}))});
      }
      advance();  // endif
      return statement;
    }
  }

  Result<Stmt> parse_for(int line) {
    Stmt statement = make(StmtKind::kFor, line);
    statement.target = NIBBLE_TRY(parse_target(false));
    if (assigns_loop(statement.target)) return error_at(line, "a for can't assign to 'loop'");
    if (!skip_name("in")) {
      return error(fmt::format("expected 'in', found {}", describe(current())));
    }
    statement.expr = NIBBLE_TRY(parse_tuple(false));
    if (skip_name("if")) statement.test = NIBBLE_TRY(parse_expression());
    if (at_name("recursive")) return unsupported_at(line, "unsupported recursive loop");
    ++loop_level_;
    ++scope_level_;
    statement.branches.push_back({nullptr, NIBBLE_TRY(parse_body({"else", "endfor"}))});
    --loop_level_;
    if (skip_name("else")) {
      statement.branches.push_back({nullptr, NIBBLE_TRY(parse_body({"endfor"}))});
    }
    --scope_level_;
    advance();  // endfor
    return statement;
  }

  Result<Stmt> parse_set(int line) {
    Stmt statement = make(StmtKind::kSet, line);
    statement.target = NIBBLE_TRY(parse_target(true));
    if (skip_operator("=")) {
      statement.expr = NIBBLE_TRY(parse_tuple());
      return statement;
    }
    statement.kind = StmtKind::kSetBlock;
    auto text = std::make_unique<Expr>();
    text->kind = ExprKind::kBlockText;
    text->line = line;
    statement.expr = NIBBLE_TRY(parse_filters(std::move(text)));
    const int outer_loops = std::exchange(loop_level_, 0);  // no break out of the block
    ++scope_level_;
    statement.branches.push_back({nullptr, NIBBLE_TRY(parse_body({"endset"}))});
    --scope_level_;
    loop_level_ = outer_loops;
    advance();  // endset
    return statement;
  }

  Result<Stmt> parse_macro(int line) {
    if (scope_level_ > 0) {
      return unsupported_at(line, "a macro inside of a for, set or macro; define it outside");
    }
    Stmt statement = make(StmtKind::kMacro, line);
    statement.macro = std::make_unique<Macro>();
    Macro& macro = *statement.macro;
    macro.name = NIBBLE_TRY(parse_name("the name of a macro"));
    in_macro_ = true;
    NIBBLE_TRY(expect_operator("("));
    while (!at_operator(")")) {
      if (!macro.parameters.empty()) NIBBLE_TRY(expect_operator(","));
      MacroParameter parameter;
      parameter.name = NIBBLE_TRY(parse_name("the name of a parameter"));
      for (const MacroParameter& other : macro.parameters) {
        if (other.name == parameter.name) {
          return error(fmt::format("parameter '{}' is there twice", other.name));
        }
      }
      if (skip_operator("=")) {
        parameter.otherwise = NIBBLE_TRY(parse_expression());
      } else if (!macro.parameters.empty() && macro.parameters.back().otherwise != nullptr) {
        return error("a parameter without a default after one with a default");
      }
      macro.parameters.push_back(std::move(parameter));
    }
    advance();
    const int outer_loops = std::exchange(loop_level_, 0);
    ++scope_level_;
    macro.body = NIBBLE_TRY(parse_body({"endmacro"}));
    --scope_level_;
    loop_level_ = outer_loops;
    in_macro_ = false;
    advance();  // endmacro
    macros_.insert(macro.name);
    return statement;
  }

  // a | ns.a | a, b | (a, b)
  Result<Target> parse_target(bool with_namespace) {
    Target first = NIBBLE_TRY(parse_one_target(with_namespace));
    if (!at_operator(",")) return first;
    Target tuple;
    tuple.parts.push_back(std::move(first));
    while (skip_operator(",")) {
      if (at_operator("=") || at_name("in") || at_operator(")")) break;
      tuple.parts.push_back(NIBBLE_TRY(parse_one_target(with_namespace)));
    }
    return tuple;
  }

  Result<Target> parse_one_target(bool with_namespace) {
    const Nesting nesting(&level_);
    NIBBLE_TRY(check_nesting());
    if (skip_operator("(")) {
      Target inner = NIBBLE_TRY(parse_target(with_namespace));
      NIBBLE_TRY(expect_operator(")"));
      return inner;
    }
    Target target;
    const int line = current().line;
    target.name = NIBBLE_TRY(parse_name("a name to assign to"));
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (target.name == constant) {
        return error_at(line, fmt::format("'{}' can't be assigned to", constant));
      }
    }
    if (with_namespace && skip_operator(".")) {
      target.attribute = NIBBLE_TRY(parse_name("the name of an attribute"));
    }
    return target;
  }

  static bool assigns_loop(const Target& target) {
    return target.name == "loop" ||
           std::any_of(target.parts.begin(), target.parts.end(), assigns_loop);
  }

  Stmt make(StmtKind kind) const { return make(kind, current().line); }
  static Stmt make(StmtKind kind, int line) {
    Stmt statement;
    statement.kind = kind;
    statement.line = line;
    return statement;
  }

  int loop_level_ = 0;   // loops that `break` could leave
  int scope_level_ = 0;  // fors, block sets and macros around the current statement
  std::set<std::string, std::less<>> macros_;
};

}  // namespace

Result<Block> parse_template(std::string_view source) {
  return Parser(NIBBLE_TRY(tokenize(source))).run();
}

}  // namespace nibble::jinja
