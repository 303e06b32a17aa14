// The commit that the program was built from.
#pragma once

#include <string_view>

namespace nibble {

// The first 12 digits of git's commit when the build was configured; empty for a source tree
// without git, unless NIBBLE_COMMIT was given to CMake.
std::string_view build_commit();

}  // namespace nibble
