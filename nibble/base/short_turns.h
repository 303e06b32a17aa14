// Threads that have little to do, and should do it at once.
#pragma once

namespace nibble {

// Asks the kernel to let the calling thread run soon after it wakes, for turns of 0.1 ms, although
// others compute on its processor: a shorter slice, which takes no larger share and needs no
// privilege. Linux 6.12 and newer; whether it was done.
bool ask_for_short_turns();

}  // namespace nibble
