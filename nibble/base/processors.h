// Which processors this process may use, by NUMA node, and which of them each thread of a pool
// should keep to.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// Processors with memory of their own.
struct NumaNode {
  int id = 0;
  std::vector<int> processors;  // that this process may run on, rising
};

// "0-3,8,10-11" as Linux writes lists of processors; whitespace around it is ignored. Errors:
// kInvalidArgument.
Result<std::vector<int>> parse_processor_list(std::string_view text);

// The processors of this thread's affinity mask, rising; at least one.
std::vector<int> allowed_processors();

// The nodes that have any of `allowed`, by number, from the files under
// root/sys/devices/system/node (a test may make its own). One node with all of them where the
// system tells of none.
std::vector<NumaNode> numa_nodes(const std::vector<int>& allowed,
                                 const std::filesystem::path& root = "/");

// For each of num_threads threads the processors to keep to, empty where the system should choose:
//   as many threads as processors, or more: one processor each, node by node (the rest: none)
//   fewer threads, several nodes: the processors of one node each, equal shares of the nodes
//   fewer threads, one node: no choice, so that they move to whatever others leave idle
std::vector<std::vector<int>> place_threads(int num_threads, const std::vector<NumaNode>& nodes);

// For each thread the index of the node that its place (of place_threads) lies in; threads that
// keep to no processor get the nodes in turn.
std::vector<size_t> thread_nodes(const std::vector<std::vector<int>>& places,
                                 const std::vector<NumaNode>& nodes);

// Keeps the calling thread to these processors; does nothing when there are none, or when the
// system refuses.
void keep_thread_to(const std::vector<int>& processors);

// What the control group's quota of processor time amounts to, in whole processors (at least 1), or
// `processors` where that is less or there is no quota. Reads root/proc/self/cgroup and the files
// cpu.max (or cpu.cfs_quota_us) from the group's folder up.
int within_cpu_quota(int processors, const std::filesystem::path& root = "/");

}  // namespace nibble
