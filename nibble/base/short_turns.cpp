#include "nibble/base/short_turns.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace nibble {
namespace {

// struct sched_attr of linux/sched/types.h, in its first version.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0;  // of SCHED_OTHER: the slice, since Linux 6.12
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

}  // namespace

bool ask_for_short_turns() {
  constexpr uint64_t kShortestSlice = 100'000;  // what the kernel takes
  SchedulingAttributes attributes;
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return false;
  if (attributes.policy != SCHED_OTHER) return false;
  attributes.runtime_ns = kShortestSlice;
  attributes.size = sizeof(attributes);
  attributes.flags = 0;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return false;
  // Older kernels take the call and forget the slice.
  SchedulingAttributes now;
  return ::syscall(SYS_sched_getattr, 0, &now, sizeof(now), 0) == 0 &&
         now.runtime_ns == kShortestSlice;
}

}  // namespace nibble
