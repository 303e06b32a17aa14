// Jinja for chat templates: what the templates of DeepSeek and their kin use, with the results of
// Jinja2 as Hugging Face's apply_chat_template sets it up (ImmutableSandboxedEnvironment,
// trim_blocks, lstrip_blocks, its own tojson, raise_exception, strftime_now).
//
// Why our own: Debian 12 has no Jinja library for C++ (its only native one is librust-tera-dev, for
// Rust; inja and minja are not packaged), and templates decide the exact prompt, so an unsupported
// construct has to be a refusal instead of a slightly different text.
//
//   statements   if elif else, for (unpacking, `if`, else, loop.*), set (also namespace attributes
//                and blocks), macro, break, continue, raw, comments
//   expressions  Python's literals, operators, comparisons, slices; `a if b else c`, is, in, ~
//   the names of filters, tests, methods and functions: jinja_builtins.h
//
// Differs from Jinja2: integers have 64 bits, keys of mappings are strings, and what would print as
// Python's internal text (a generator, a function) is an error. Each is refused, not approximated.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_limits.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

struct Program;

struct RenderOptions {
  Limits limits;
  std::optional<std::time_t> now;  // what strftime_now sees; the clock when absent
};

// A parsed template. Cheap to copy; may be rendered by several threads at once.
class Template {
 public:
  // Errors: kInvalidArgument for bad syntax or UTF-8, kUnsupported for a construct beyond the list
  // above; both begin with "line 3: ".
  static Result<Template> parse(std::string_view source);

  // The text for `variables`, whose strings are UTF-8. Errors, as "line 3: ...": kInvalidArgument
  // for what Python refuses as well, for raise_exception and for exceeded limits; kUnsupported.
  Result<std::string> render(const Dict& variables, const RenderOptions& options = {}) const;

 private:
  explicit Template(std::shared_ptr<const Program> program) : program_(std::move(program)) {}

  std::shared_ptr<const Program> program_;
};

}  // namespace nibble::jinja
