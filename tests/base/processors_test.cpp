#include "nibble/base/processors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "nibble/base/thread_pool.h"
#include "tests/base/temporary_folder.h"

namespace nibble {
namespace {

using nibble::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

TEST(ProcessorList, ReadsRangesAndNumbers) {
  EXPECT_THAT(parse_processor_list("0-3,8,10-11\n").value(), ElementsAre(0, 1, 2, 3, 8, 10, 11));
  EXPECT_THAT(parse_processor_list("5").value(), ElementsAre(5));
  EXPECT_THAT(parse_processor_list(" \n").value(), IsEmpty());
  for (const char* bad : {"a", "1-", "-1", "3-1", "1,", "1,,2", "1 2", "0-99999999999", "1-2-3"}) {
    EXPECT_FALSE(parse_processor_list(bad).has_value()) << bad;
  }
}

TEST(NumaNodes, AreThoseWithAllowedProcessors) {
  const TemporaryFolder root;
  const auto node = root / "sys/devices/system/node";
  write(node / "node1/cpulist", "4-7\n");
  write(node / "node0/cpulist", "0-3\n");
  write(node / "node2/cpulist", "\n");  // memory alone
  write(node / "online", "0-2\n");
  const auto nodes = numa_nodes({1, 2, 5}, root.path());
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].id, 0);
  EXPECT_THAT(nodes[0].processors, ElementsAre(1, 2));
  EXPECT_EQ(nodes[1].id, 1);
  EXPECT_THAT(nodes[1].processors, ElementsAre(5));
  // A processor that no node has: the files don't tell the truth, so they tell nothing.
  EXPECT_EQ(numa_nodes({1, 2, 9}, root.path()).size(), 1u);
  const TemporaryFolder empty;
  ASSERT_EQ(numa_nodes({3, 4}, empty.path()).size(), 1u);
  EXPECT_THAT(numa_nodes({3, 4}, empty.path())[0].processors, ElementsAre(3, 4));
}

TEST(NumaNodes, OfThisMachineHaveAllItsProcessors) {
  const std::vector<int> allowed = allowed_processors();
  ASSERT_FALSE(allowed.empty());
  std::multiset<int> found;
  for (const NumaNode& node : numa_nodes(allowed)) {
    found.insert(node.processors.begin(), node.processors.end());
  }
  EXPECT_EQ(found, std::multiset<int>(allowed.begin(), allowed.end()));
}

TEST(PlaceThreads, GivesEachThreadAProcessorOnlyWhenAllAreUsed) {
  const std::vector<NumaNode> one = {{0, {2, 3, 6}}};
  EXPECT_THAT(place_threads(3, one), ElementsAre(ElementsAre(2), ElementsAre(3), ElementsAre(6)));
  EXPECT_THAT(place_threads(2, one), ElementsAre(IsEmpty(), IsEmpty()));
  EXPECT_THAT(place_threads(4, one),
              ElementsAre(ElementsAre(2), ElementsAre(3), ElementsAre(6), IsEmpty()));
  const std::vector<NumaNode> two = {{0, {0, 1}}, {1, {2, 3}}};
  EXPECT_THAT(place_threads(2, two), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(place_threads(3, two),
              ElementsAre(ElementsAre(0, 1), ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(place_threads(4, two),
              ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2), ElementsAre(3)));
}

TEST(CpuQuota, IsTheLeastOnTheWayUp) {
  const TemporaryFolder root;
  EXPECT_EQ(within_cpu_quota(8, root.path()), 8);
  write(root / "proc/self/cgroup", "0::/a/b\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 8);
  write(root / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 8);
  write(root / "sys/fs/cgroup/a/b/cpu.max", "350000 100000\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 3);
  EXPECT_EQ(within_cpu_quota(2, root.path()), 2);
  write(root / "sys/fs/cgroup/a/cpu.max", "200000 100000\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 2);
  write(root / "sys/fs/cgroup/cpu.max", "20000 100000\n");  // a fifth of one
  EXPECT_EQ(within_cpu_quota(8, root.path()), 1);
}

TEST(CpuQuota, IsReadFromVersion1Too) {
  const TemporaryFolder root;
  write(root / "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n");
  write(root / "sys/fs/cgroup/memory/x/cpu.cfs_quota_us", "100000\n");
  write(root / "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "50000\n");
  write(root / "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 8);
  write(root / "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "200000\n");
  EXPECT_EQ(within_cpu_quota(8, root.path()), 4);
}

// The processors that each thread of a pool may use, asked by itself.
std::vector<std::set<int>> masks_of(ThreadPool& pool) {
  const auto threads = static_cast<size_t>(pool.num_threads());
  std::vector<std::set<int>> masks(threads);
  std::atomic<size_t> arrived{0};
  pool.parallel_for(pool.num_threads(), 1, [&](int64_t, int64_t, int thread_id) {
    const std::vector<int> mine = allowed_processors();
    masks[static_cast<size_t>(thread_id)] = {mine.begin(), mine.end()};
    ++arrived;
    while (arrived.load() < threads) std::this_thread::yield();  // so that each has one piece
  });
  return masks;
}

TEST(PinnedPool, KeepsWorkersToProcessorsOfTheirOwnAndLeavesTheCallerAlone) {
  const std::vector<int> allowed = allowed_processors();
  const std::set<int> all(allowed.begin(), allowed.end());
  ThreadPool pool(static_cast<int>(allowed.size()), Placement::kPinned);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const auto masks = masks_of(pool);
    EXPECT_EQ(masks[0], all);
    std::set<int> taken;
    for (size_t i = 1; i < masks.size(); ++i) {
      EXPECT_EQ(masks[i].size(), 1u);
      taken.insert(masks[i].begin(), masks[i].end());
    }
    EXPECT_EQ(taken.size(), masks.size() - 1);
  }
}

TEST(PinnedPool, MakesRoomForACallerThatMoves) {
  const std::vector<int> allowed = allowed_processors();
  ThreadPool pool(static_cast<int>(allowed.size()), Placement::kPinned);
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (const int processor : allowed) {
      keep_thread_to({processor});
      const auto masks = masks_of(pool);
      for (size_t i = 1; i < masks.size(); ++i) {
        EXPECT_EQ(masks[i].count(processor), 0u) << "the caller is on " << processor;
      }
    }
  }
  keep_thread_to(allowed);
}

TEST(PinnedPool, CanBeSwitchedOff) {
  const std::vector<int> allowed = allowed_processors();
  const std::set<int> all(allowed.begin(), allowed.end());
  ::setenv("NIBBLE_PIN", "0", 1);
  ThreadPool pool(static_cast<int>(allowed.size()), Placement::kPinned);
  ::unsetenv("NIBBLE_PIN");
  for (const auto& mask : masks_of(pool)) EXPECT_EQ(mask, all);
}

}  // namespace
}  // namespace nibble
