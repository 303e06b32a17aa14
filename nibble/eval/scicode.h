// SciCode's own ways: which steps are given, what is carried forward, the program that tests run
// in. Source: the SciCode project's eval/scripts and src/scicode/parse, as the specification tells
// them.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/eval/sandbox.h"

namespace nibble {

// Steps 13.6, 62.1 and 76.3 are not asked: their code is in the project's eval/data.
bool is_given_step(std::string_view step);

// The name that follows "def" or "class" in a step's header; empty for none.
std::string name_in_header(std::string_view header);

// The definition of this function or class in a program, as Python's own parser sees it; the whole
// program where it is none that Python can read, nothing where it does not define the name. Runs in
// the sandbox. Errors: kUnsupported without one.
Result<std::string> definition_in(const std::string& program, const std::string& name,
                                  SandboxLevel level);

// Program, targets and tests as one Python text. `tests` is EvalItem::tests of a step; targets come
// from it, or from the HDF5 file that NIBBLE_DATA names. Ends by writing "passed" to descriptor 3.
std::string scicode_program(std::string_view program, std::string_view earlier,
                            std::string_view tests);

// The HDF5 file that the program reads, or nothing.
std::string targets_file_of(std::string_view tests);

}  // namespace nibble
