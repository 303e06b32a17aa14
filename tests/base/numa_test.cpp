// NUMA nodes that this machine may not have: made up for threads, real only for node 0's memory.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/numa_memory.h"
#include "nibble/base/processors.h"
#include "nibble/base/thread_pool.h"

namespace nibble {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<NumaNode>& two_nodes() {
  static const std::vector<NumaNode> kNodes = {{3, {0}}, {5, {1}}};
  return kNodes;
}

TEST(ThreadNodes, AreThoseOfTheirProcessorsOrTakeTurns) {
  const std::vector<NumaNode> nodes = {{0, {0, 1}}, {1, {2, 3}}};
  EXPECT_THAT(thread_nodes(place_threads(6, nodes), nodes), ElementsAre(0, 0, 1, 1, 0, 1));
  EXPECT_THAT(thread_nodes(place_threads(3, nodes), nodes), ElementsAre(0, 0, 1));
  EXPECT_THAT(thread_nodes(place_threads(2, {{0, {0, 1, 2}}}), {{0, {0, 1, 2}}}),
              ElementsAre(0, 0));
}

TEST(NodePool, SharesThingsInProportionToThreads) {
  const ThreadPool three(3, Placement::kPinned, {{3, {0, 1}}, {5, {2, 3}}});  // 2 and 1 threads
  EXPECT_THAT(three.nodes(), ElementsAre(3, 5));
  EXPECT_EQ(three.share_begin(16, 0), 0);
  EXPECT_EQ(three.share_begin(16, 1), 10);
  EXPECT_EQ(three.share_begin(16, 2), 16);
  // Two threads on three nodes: the third has none, and so no share.
  const ThreadPool two(2, Placement::kPinned, {{0, {0}}, {1, {1}}, {2, {2}}});
  EXPECT_THAT(two.nodes(), ElementsAre(0, 1));
  EXPECT_EQ(two.share_begin(7, 1), 3);
  for (const int threads : {1, 2}) {
    const ThreadPool one(threads, Placement::kPinned, {{4, {0, 1}}});
    EXPECT_EQ(one.nodes().size(), 1u);
    EXPECT_EQ(one.share_begin(16, 1), 16);
  }
  ::setenv("NIBBLE_PIN", "0", 1);
  const ThreadPool free(2, Placement::kPinned, two_nodes());
  ::unsetenv("NIBBLE_PIN");
  EXPECT_EQ(free.nodes().size(), 1u);
}

// One loop over nodes: which pieces each thread took, in its order, and its node.
struct Trace {
  std::vector<std::vector<int64_t>> pieces;
  std::vector<int> homes;
};
template <typename Inside>
Trace trace_loop(ThreadPool& pool, const std::vector<int64_t>& bounds, Inside inside) {
  Trace trace;
  trace.pieces.resize(static_cast<size_t>(pool.num_threads()));
  pool.parallel_for_nodes(bounds, 1, [&](int64_t begin, int64_t end, int thread_id) {
    EXPECT_EQ(end, begin + 1);
    trace.pieces[static_cast<size_t>(thread_id)].push_back(begin);
    inside(begin);
  });
  for (int i = 0; i < pool.num_threads(); ++i) trace.homes.push_back(pool.home(i));
  return trace;
}

std::vector<int> visits(const Trace& trace, int64_t count) {
  std::vector<int> result(static_cast<size_t>(count), 0);
  for (const auto& pieces : trace.pieces) {
    for (const int64_t piece : pieces) ++result[static_cast<size_t>(piece)];
  }
  return result;
}

TEST(NodePool, ThreadsTakeTheirNodesPiecesFirstAndEveryPieceIsTakenOnce) {
  for (const int threads : {2, 3, 4, 5}) {
    ThreadPool pool(threads, Placement::kPinned, two_nodes());
    for (const std::vector<int64_t>& bounds :
         {std::vector<int64_t>{0, 6, 12}, {0, 1, 40}, {0, 40, 41}, {0, 0, 9}, {0, 9, 9}}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const Trace trace = trace_loop(pool, bounds, [](int64_t) { std::this_thread::yield(); });
        EXPECT_THAT(visits(trace, bounds[2]), Each(1));
        for (size_t t = 0; t < trace.pieces.size(); ++t) {
          bool foreign = false;  // and from then on nothing of its own
          for (const int64_t piece : trace.pieces[t]) {
            const bool own = (piece < bounds[1] ? 0 : 1) == trace.homes[t];
            EXPECT_FALSE(own && foreign) << "thread " << t << " came back to piece " << piece;
            foreign = foreign || !own;
          }
        }
      }
    }
  }
}

TEST(NodePool, BothNodesWorkOnTheirOwnWhenBothAreThere) {
  ThreadPool pool(2, Placement::kPinned, two_nodes());
  std::atomic<int> arrived{0};
  const Trace trace = trace_loop(pool, {0, 5, 10}, [&](int64_t) {
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_NE(trace.homes[0], trace.homes[1]);
  for (size_t t = 0; t < 2; ++t) {
    ASSERT_FALSE(trace.pieces[t].empty());
    EXPECT_EQ(trace.pieces[t][0], trace.homes[t] == 0 ? 0 : 5);
  }
}

TEST(NodePool, ANodeThatIsLateIsHelped) {
  ThreadPool pool(2, Placement::kPinned, two_nodes());
  std::atomic<int> done{0};
  // The thread that has piece 6, the first of node 5, keeps it until all others are done.
  const Trace trace = trace_loop(pool, {0, 6, 12}, [&](int64_t piece) {
    while (piece == 6 && done.load() < 11) std::this_thread::yield();
    ++done;
  });
  EXPECT_THAT(visits(trace, 12), Each(1));
  EXPECT_EQ(done, 12);
}

TEST(NodePool, ManyLoopsOfBothKindsFollowEachOther) {
  ThreadPool pool(4, Placement::kPinned, two_nodes());
  std::vector<int64_t> values(33, 0);
  const std::vector<int64_t> bounds = {0, 12, 33};
  for (int loop = 0; loop < 2000; ++loop) {
    const auto add = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i + loop;
    };
    if (loop % 2 == 0) {
      pool.parallel_for_nodes(bounds, 1 + loop % 3, add);
    } else {
      pool.parallel_for(33, 1 + loop % 5, add);
    }
  }
  for (int64_t i = 0; i < 33; ++i) {
    EXPECT_EQ(values[static_cast<size_t>(i)], 2000 * i + 2000 * 1999 / 2);
  }
}

// The policy of the page at `address`, and the nodes below 64 that it names.
std::pair<int, uint64_t> policy_at(void* address) {
  int mode = -1;
  unsigned long nodes[16] = {};
  EXPECT_EQ(::syscall(SYS_get_mempolicy, &mode, nodes, 1024, address, MPOL_F_ADDR), 0);
  return {mode, nodes[0]};
}

TEST(SystemNumaMemory, PlacesWholePagesOnNode0) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* const mapped =
      ::mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto* const bytes = static_cast<std::byte*>(mapped);
  const auto close = [&] { ::munmap(mapped, 8 * page); };

  // From the middle of page 1 to the middle of page 4: pages 2 to 4 begin in it.
  const Status placed = system_numa_memory().prefer(bytes + page + page / 2, 3 * page, 0);
  if (!placed && placed.error().code == ErrorCode::kUnavailable) {
    close();
    GTEST_SKIP() << "not allowed here: " << placed.error().message;
  }
  ASSERT_TRUE(placed) << placed.error().message;
  const int none[] = {0, 1, 5, 6, 7};
  for (const int i : none) EXPECT_EQ(policy_at(bytes + i * page).first, MPOL_DEFAULT) << i;
  for (const int i : {2, 3, 4}) {
    EXPECT_EQ(policy_at(bytes + i * page), std::pair(int{MPOL_PREFERRED}, uint64_t{1})) << i;
  }
  const int nodes[] = {0};
  ASSERT_TRUE(system_numa_memory().interleave(bytes + 5 * page, page, nodes));
  EXPECT_EQ(policy_at(bytes + 5 * page), std::pair(int{MPOL_INTERLEAVE}, uint64_t{1}));
  EXPECT_TRUE(system_numa_memory().prefer(bytes + 1, 10, 0));  // no page begins in it

  bytes[3 * page] = std::byte{1};
  int node = -1;
  ASSERT_EQ(
      ::syscall(SYS_get_mempolicy, &node, nullptr, 0, bytes + 3 * page, MPOL_F_NODE | MPOL_F_ADDR),
      0);
  EXPECT_EQ(node, 0);

  for (const int absent : {-1, 1023, 1024}) {
    const Status refused = system_numa_memory().prefer(bytes, page, absent);
    ASSERT_FALSE(refused) << absent;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(refused.error().message, HasSubstr(fmt::format("NUMA node {}", absent)));
    EXPECT_EQ(refused.error().message.find("CAP_SYS_NICE"), std::string::npos);
  }
  close();
}

TEST(SystemNumaMemory, NamesTheLimitOfMappingsWhenItIsReached) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  int64_t limit = 0;
  ASSERT_TRUE(std::ifstream("/proc/sys/vm/max_map_count") >> limit);
  if (limit > 300000) GTEST_SKIP() << "takes long with vm.max_map_count = " << limit;
  const size_t pages = 2 * static_cast<size_t>(limit) + 16;
  void* const mapped =
      ::mmap(nullptr, pages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto* const bytes = static_cast<std::byte*>(mapped);
  size_t i = 1;  // every second page becomes a mapping
  while (i < pages && ::mprotect(bytes + i * page, page, PROT_READ) == 0) i += 2;
  const bool full = i < pages;
  const Status refused = system_numa_memory().prefer(bytes + (pages - 3) * page, page, 0);
  ::munmap(mapped, pages * page);
  ASSERT_TRUE(full);
  ASSERT_FALSE(refused);
  if (refused.error().code == ErrorCode::kUnavailable) GTEST_SKIP() << refused.error().message;
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_THAT(refused.error().message, HasSubstr("vm.max_map_count"));
}

}  // namespace
}  // namespace nibble
