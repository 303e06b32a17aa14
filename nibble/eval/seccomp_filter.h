// System calls that no program of a stranger needs, refused with EPERM in the sandbox.
#pragma once

#include "nibble/base/result.h"

namespace nibble {

// Writes the filter as a BPF program to `fd`, as bubblewrap's --seccomp takes it: sockets other
// than AF_UNIX, ptrace and other processes' memory, the mount family, new namespaces, bpf, perf,
// keys, userfaultfd, io_uring, kexec, modules. Errors: kUnsupported when libseccomp cannot.
Status write_seccomp_filter(int fd);

}  // namespace nibble
