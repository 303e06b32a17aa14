#include "nibble/comm/cuda/nccl.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <initializer_list>
#include <string>

#include "nibble/base/error.h"

namespace nibble::cuda {
namespace {

template <typename Function>
bool load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Result<Nccl> open() {
  // Multicast can take a host's GPUs out of service when it goes wrong, and what is sent here is
  // too small to gain from it.
  (void)::setenv("NCCL_NVLS_ENABLE", "0", 0);
  // Ranks need not record the same step into a graph: then NCCL must not exchange buffers for it.
  (void)::setenv("NCCL_GRAPH_REGISTER", "0", 0);
  void* library = nullptr;
  for (const char* name : std::initializer_list<const char*>{std::getenv("NIBBLE_NCCL"),
                                                             "libnccl.so.2", "libnccl.so"}) {
    if (name != nullptr && library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    return unsupported(
        "several GPUs need NCCL, and libnccl.so.2 is not found; install libnccl2, or give its path "
        "in NIBBLE_NCCL");
  }
  Nccl n;
  if (!load(library, "ncclGetVersion", n.get_version) ||
      !load(library, "ncclGetUniqueId", n.get_unique_id) ||
      !load(library, "ncclCommInitRank", n.comm_init_rank) ||
      !load(library, "ncclCommDestroy", n.comm_destroy) ||
      !load(library, "ncclCommAbort", n.comm_abort) ||
      !load(library, "ncclGetErrorString", n.get_error_string) ||
      !load(library, "ncclAllReduce", n.all_reduce) ||
      !load(library, "ncclAllGather", n.all_gather) ||
      !load(library, "ncclReduceScatter", n.reduce_scatter) ||
      !load(library, "ncclReduce", n.reduce) || !load(library, "ncclBroadcast", n.broadcast) ||
      !load(library, "ncclSend", n.send) || !load(library, "ncclRecv", n.recv) ||
      !load(library, "ncclGroupStart", n.group_start) ||
      !load(library, "ncclGroupEnd", n.group_end)) {
    return unsupported("this libnccl lacks functions of NCCL 2.7 and later");
  }
  return n;
}

}  // namespace

Result<const Nccl*> Nccl::find() {
  static const Result<Nccl> found = open();
  if (!found) return tl::unexpected(found.error());
  return &*found;
}

}  // namespace nibble::cuda
