// Template text to syntax tree. What the engine can't run is refused here, when a template is
// loaded, and not when the first conversation happens to need it.
#pragma once

#include <string_view>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_ast.h"

namespace nibble::jinja {

// Errors: kInvalidArgument "line 3: ..." for bad syntax; kUnsupported, also with the line, for
// Jinja's other constructs, filters, tests, methods and functions, naming the supported ones, and
// for nesting that would take too much stack.
Result<Block> parse_template(std::string_view source);

}  // namespace nibble::jinja
