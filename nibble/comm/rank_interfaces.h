// Keeps what ranks say to each other off networks that nobody named.
#pragma once

#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Lets MPI (its TCP and UCX) and NCCL use these interfaces alone ("eth0,eth1"), through the
// environment that they read when they start: call it before them, and from one thread. Traffic
// within a machine over shared memory or NVLink is not meant, nor are mpirun's own daemons, which
// are told with --mca oob_tcp_if_include. Errors: kInvalidArgument naming an interface that this
// machine hasn't, and those it has.
Status restrict_rank_traffic(std::string_view interfaces);

}  // namespace nibble
