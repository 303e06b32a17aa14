#include "nibble/base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace nibble {
namespace {

TEST(ThreadPool, VisitsEveryIndexOnceForAllSizesAndGrains) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 8, 9, 64, 1000}) {
      for (const int64_t grain : {1, 2, 7, 8, 999, 1000, 1001}) {
        SCOPED_TRACE(std::to_string(threads) + " threads, count " + std::to_string(count) +
                     ", grain " + std::to_string(grain));
        std::vector<int> visits(static_cast<size_t>(count), 0);
        std::atomic<int> bad_ranges{0};
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread_id) {
          const bool good = begin >= 0 && begin < end && end <= count && end - begin <= grain &&
                            thread_id >= 0 && thread_id < threads;
          if (!good) ++bad_ranges;
          // Ranges are disjoint, so no other thread touches these: tsan would tell.
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        EXPECT_EQ(bad_ranges, 0);
        EXPECT_EQ(visits, std::vector<int>(static_cast<size_t>(count), 1));
      }
    }
  }
}

// Leaves room for a few more stacks of threads, then asks for a thousand threads. Exits with 0 when
// that throws and the threads that did start are gone.
[[noreturn]] void start_too_many_threads() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t bytes = pages * 4096 + (rlim_t{128} << 20);
  const rlimit limit = {bytes, bytes};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) std::_Exit(1);
  try {
    const ThreadPool pool(1000);
    std::_Exit(2);
  } catch (const std::system_error& error) {
    std::_Exit(std::string(error.what()).find("of 1000") != std::string::npos ? 0 : 3);
  }
}

TEST(ThreadPool, ThrowsWhenTheSystemStartsNoMoreThreads) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs the address space that the test takes away";
#endif
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(start_too_many_threads(), ::testing::ExitedWithCode(0), "");
}

TEST(ThreadPool, DoesNothingForANegativeCount) {
  ThreadPool pool(2);
  int calls = 0;
  pool.parallel_for(-5, 1, [&](int64_t, int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST(ThreadPool, RunsManyShortLoopsOneAfterTheOther) {
  ThreadPool pool(4);
  std::vector<int64_t> values(37, 0);
  constexpr int kLoops = 3000;
  for (int loop = 0; loop < kLoops; ++loop) {
    // Reads what the loop before wrote, on whichever thread that ran.
    pool.parallel_for(37, 1 + loop % 5, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i + loop;
    });
  }
  for (int64_t i = 0; i < 37; ++i) {
    EXPECT_EQ(values[static_cast<size_t>(i)], kLoops * i + int64_t{kLoops} * (kLoops - 1) / 2);
  }
}

TEST(ThreadPool, WakesThreadsThatWentToSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    // Each of the two ranges waits for the other: only two threads at once can finish this.
    std::atomic<int> arrived{0};
    pool.parallel_for(2, 1, [&](int64_t, int64_t, int) {
      ++arrived;
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 2);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

TEST(ThreadPool, GivesEachThreadItsOwnId) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<int> ids;
  std::set<std::thread::id> threads;
  std::atomic<int> arrived{0};
  pool.parallel_for(3, 1, [&](int64_t, int64_t, int thread_id) {
    {
      const std::lock_guard lock(mutex);
      ids.insert(thread_id);
      threads.insert(std::this_thread::get_id());
    }
    ++arrived;
    while (arrived.load() < 3) std::this_thread::yield();
  });
  EXPECT_EQ(ids, (std::set<int>{0, 1, 2}));
  EXPECT_EQ(threads.size(), 3u);
  EXPECT_EQ(threads.count(std::this_thread::get_id()), 1u);
}

TEST(ThreadPool, PoolsInsidePoolsDoNotDisturbEachOther) {
  ThreadPool outer(2);
  std::vector<std::unique_ptr<ThreadPool>> inner;
  for (int i = 0; i < 2; ++i) inner.push_back(std::make_unique<ThreadPool>(2));
  std::vector<int64_t> sums(40, 0);
  outer.parallel_for(40, 1, [&](int64_t begin, int64_t end, int thread_id) {
    for (int64_t i = begin; i < end; ++i) {
      std::atomic<int64_t> sum{0};
      inner[static_cast<size_t>(thread_id)]->parallel_for(i, 3, [&](int64_t b, int64_t e, int) {
        for (int64_t k = b; k < e; ++k) sum += k;
      });
      sums[static_cast<size_t>(i)] = sum;
    }
  });
  for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(sums[static_cast<size_t>(i)], i * (i - 1) / 2);
}

TEST(ThreadPool, StartsAndStopsWithoutEverRunningALoop) {
  for (int i = 0; i < 50; ++i) {
    const ThreadPool pool(4);
    EXPECT_EQ(pool.num_threads(), 4);
  }
}

TEST(ThreadPool, TakesAConstCallable) {
  ThreadPool pool(2);
  std::atomic<int64_t> total{0};
  const auto task = [&](int64_t begin, int64_t end, int) { total += end - begin; };
  pool.parallel_for(100, 7, task);
  EXPECT_EQ(total, 100);
}

TEST(ThreadPoolDeathTest, RefusesAPoolOfNoThreadsAndAGrainOfZero) {
  EXPECT_DEATH(ThreadPool(0), "check failed: num_threads >= 1");
  EXPECT_DEATH(
      {
        ThreadPool pool(1);
        pool.parallel_for(3, 0, [](int64_t, int64_t, int) {});
      },
      "check failed: grain >= 1");
}

}  // namespace
}  // namespace nibble
