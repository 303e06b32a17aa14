#include "nibble/eval/seccomp_filter.h"

#include <seccomp.h>

#include <cerrno>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr unsigned kUnixFamily = 1;  // AF_UNIX; sockets have their header, and this needs none
// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET of sched.h.
constexpr unsigned kNamespaceFlags[] = {0x00020000, 0x02000000, 0x04000000, 0x08000000,
                                        0x10000000, 0x20000000, 0x40000000};

constexpr const char* kRefused[] = {
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "mount", "umount2", "pivot_root",
    "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
    "unshare", "setns", "bpf", "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at",
    // Memory that no limit counts.
    "memfd_create", "memfd_secret", "shmget", "swapon", "swapoff", "reboot", "acct", "quotactl",
    "syslog"};

}  // namespace

Status write_seccomp_filter(int fd) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  if (filter == nullptr) return unsupported("libseccomp cannot make a filter");
  const uint32_t refuse = SCMP_ACT_ERRNO(EPERM);
  int failed = 0;
  for (const char* name : kRefused) {
    // Names that this machine's kernel headers do not know are no system calls here.
    const int number = seccomp_syscall_resolve_name(name);
    if (number != __NR_SCMP_ERROR) failed |= seccomp_rule_add(filter, refuse, number, 0);
  }
  failed |=
      seccomp_rule_add(filter, refuse, SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_NE, kUnixFamily));
  for (const unsigned flag : kNamespaceFlags) {
    failed |= seccomp_rule_add(filter, refuse, SCMP_SYS(clone), 1,
                               SCMP_A0(SCMP_CMP_MASKED_EQ, flag, flag));
  }
  // Its flags are in memory, where a filter cannot look; libraries fall back to clone().
  failed |= seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  if (failed == 0) failed = seccomp_export_bpf(filter, fd);
  seccomp_release(filter);
  if (failed != 0) return unsupported("libseccomp cannot make the sandbox's filter");
  return {};
}

}  // namespace nibble
