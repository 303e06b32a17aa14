// Ctrl-C and SIGTERM as a flag that long work looks at.
#pragma once

#include "nibble/base/result.h"

namespace nibble {

// The first SIGINT or SIGTERM sets the flag; the second one ends the process at once (130, 143).
void install_interrupt_handlers();

// True once a signal came. Cheap; safe from any thread.
bool interrupted();

// kCancelled "interrupted" once a signal came, otherwise ok: NIBBLE_TRY(check_interrupt()) in a
// loop.
Status check_interrupt();

// Forgets a signal that came; an interactive prompt uses it to go on after one answer was stopped.
void clear_interrupt();

}  // namespace nibble
