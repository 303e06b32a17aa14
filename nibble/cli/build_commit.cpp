// Alone in its file, because NIBBLE_COMMIT changes with every commit.
#include "nibble/cli/build_commit.h"

namespace nibble {

std::string_view build_commit() { return NIBBLE_COMMIT; }

}  // namespace nibble
