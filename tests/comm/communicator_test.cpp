#include "nibble/comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "nibble/comm/rank_interfaces.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/comm/watchdog.h"

namespace nibble {
namespace {

// Another implementation beside threads' own: what the base class makes of all_to_all alone, which
// is what MPI runs on.
class DerivedFromAllToAll : public Communicator {
 public:
  explicit DerivedFromAllToAll(std::unique_ptr<Communicator> inner)
      : Communicator(inner->rank(), inner->size()), inner_(std::move(inner)) {}
  std::string_view name() const override { return "derived"; }

 protected:
  Status do_all_to_all(std::span<const ConstBytes> sends,
                       std::span<const Bytes> receives) override {
    inner_->all_to_all(sends, receives);
    return inner_->status();
  }
  void do_abort(std::string_view message) override { inner_->abort(message); }

 private:
  std::unique_ptr<Communicator> inner_;
};

struct CommCase {
  int size;
  bool derived;
};

class CommunicatorTest : public testing::TestWithParam<CommCase> {
 protected:
  // Runs `rank` on a thread for each rank.
  static void on_all_ranks(const std::function<void(Communicator&)>& rank) {
    auto comms = thread_communicators(GetParam().size);
    std::vector<std::thread> threads;
    for (auto& comm : comms) {
      threads.emplace_back([&rank, comm = std::move(comm)]() mutable {
        if (GetParam().derived) comm = std::make_unique<DerivedFromAllToAll>(std::move(comm));
        rank(*comm);
        comm->barrier();
        EXPECT_TRUE(comm->status().has_value());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

std::vector<float> random_floats(int seed, size_t count) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  std::uniform_real_distribution<float> distribution(-1000, 1000);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(rng);
  return values;
}

// Sums of these depend on their order, so equal bits show that it is that of the ranks.
TEST_P(CommunicatorTest, AllReduceAddsInTheOrderOfTheRanks) {
  for (const size_t count : {size_t{1}, size_t{5}, size_t{384}, size_t{70001}}) {
    std::vector<float> expected = random_floats(0, count);
    for (int r = 1; r < GetParam().size; ++r) {
      const std::vector<float> x = random_floats(r, count);
      for (size_t i = 0; i < count; ++i) expected[i] += x[i];
    }
    on_all_ranks([&](Communicator& comm) {
      for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<float> x = random_floats(comm.rank(), count);
        comm.all_reduce_sum(x.data(), static_cast<int64_t>(count));
        EXPECT_EQ(std::memcmp(x.data(), expected.data(), count * sizeof(float)), 0);
      }
    });
  }
}

TEST_P(CommunicatorTest, ReduceScatterGivesEachRankItsPartOfTheSum) {
  const int size = GetParam().size;
  // Rank r gets r + 1 elements; element i of rank r's input is 100 r + i.
  on_all_ranks([&](Communicator& comm) {
    std::vector<int64_t> counts;
    for (int r = 0; r < size; ++r) counts.push_back(r + 1);
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    std::vector<float> in(static_cast<size_t>(total));
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(100 * comm.rank() + int(i));
    std::vector<float> out(static_cast<size_t>(comm.rank()) + 1, -1);
    comm.reduce_scatter_sum(in.data(), counts, out.data());
    const int first = comm.rank() * (comm.rank() + 1) / 2;
    for (int i = 0; i <= comm.rank(); ++i) {
      const int expected = size * (first + i) + 100 * size * (size - 1) / 2;
      EXPECT_EQ(out[static_cast<size_t>(i)], static_cast<float>(expected));
    }
  });
}

TEST_P(CommunicatorTest, AllGatherPutsPartsOfAnySizeInOrder) {
  on_all_ranks([&](Communicator& comm) {
    std::vector<size_t> bytes;  // rank r gives r bytes: the first one none
    std::string expected;
    for (int r = 0; r < comm.size(); ++r) {
      bytes.push_back(static_cast<size_t>(r));
      expected += std::string(static_cast<size_t>(r), static_cast<char>('a' + r));
    }
    const std::string mine(static_cast<size_t>(comm.rank()), static_cast<char>('a' + comm.rank()));
    std::string out(expected.size(), '?');
    comm.all_gather(mine.data(), bytes, out.data());
    EXPECT_EQ(out, expected);
  });
}

TEST_P(CommunicatorTest, AllToAllDeliversEachPairsBytes) {
  // Rank s sends 3 s + r bytes of value 16 s + r to rank r.
  const auto text = [](int s, int r) {
    return std::string(static_cast<size_t>(3 * s + r), static_cast<char>(16 * s + r));
  };
  on_all_ranks([&](Communicator& comm) {
    std::vector<std::string> out;
    std::vector<std::string> in;
    for (int r = 0; r < comm.size(); ++r) {
      out.push_back(text(comm.rank(), r));
      in.emplace_back(text(r, comm.rank()).size(), '?');
    }
    std::vector<Communicator::ConstBytes> sends;
    std::vector<Communicator::Bytes> receives;
    for (size_t r = 0; r < out.size(); ++r) {
      sends.push_back(std::as_bytes(std::span(out[r])));
      receives.push_back(std::as_writable_bytes(std::span(in[r])));
    }
    comm.all_to_all(sends, receives);
    for (int r = 0; r < comm.size(); ++r) {
      EXPECT_EQ(in[static_cast<size_t>(r)], text(r, comm.rank()));
    }
  });
}

TEST_P(CommunicatorTest, BroadcastReachesAllFromEveryRoot) {
  on_all_ranks([&](Communicator& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      std::vector<std::byte> message;
      if (comm.rank() == root) message.resize(static_cast<size_t>(root) * 1000, std::byte{7});
      comm.broadcast_message(message, root);
      EXPECT_EQ(message, std::vector<std::byte>(static_cast<size_t>(root) * 1000, std::byte{7}));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, CommunicatorTest,
                         testing::Values(CommCase{1, false}, CommCase{2, false}, CommCase{3, false},
                                         CommCase{4, false}, CommCase{2, true}, CommCase{4, true}));

TEST(ThreadCommunicators, AnAbortEndsWhatTheOthersWaitForWithRankAndReason) {
  auto comms = thread_communicators(3);
  std::vector<Status> seen(3);
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      Communicator& comm = *comms[static_cast<size_t>(r)];
      if (r == 2) {
        comm.abort("shard 7 is truncated");
      } else {
        comm.barrier();
        comm.barrier();  // does nothing any more
      }
      seen[static_cast<size_t>(r)] = comm.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Status& status : seen) {
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
    EXPECT_EQ(status.error().message, "rank 2: shard 7 is truncated");
  }
}

TEST(ThreadCommunicators, ARankThatEndsEndsTheOthers) {
  auto comms = thread_communicators(2);
  comms[1].reset();
  float x = 1;
  comms[0]->all_reduce_sum(&x, 1);
  EXPECT_EQ(comms[0]->status().error().message, "rank 1 has ended");
  EXPECT_EQ(x, 1);
}

// While rank 1 still copies what rank 0 sends, a third rank fails. Rank 0 may not leave the
// operation before rank 1 is through, as it then takes its memory back, here by writing over it.
TEST(ThreadCommunicators, AFailureLeavesNobodyReadingWhatIsGone) {
  constexpr size_t kSize = size_t{24} << 20;
  for (int repeat = 0; repeat < 12; ++repeat) {
    SCOPED_TRACE(repeat);
    auto comms = thread_communicators(3);
    std::vector<std::byte> sent(kSize, std::byte{1});
    std::vector<std::byte> received(kSize, std::byte{0});
    std::vector<std::thread> threads;
    for (int r = 0; r < 3; ++r) {
      threads.emplace_back([&, r] {
        std::vector<Communicator::ConstBytes> sends(3);
        std::vector<Communicator::Bytes> receives(3);
        if (r == 0) sends[1] = sent;
        if (r == 1) receives[0] = received;
        comms[static_cast<size_t>(r)]->all_to_all(sends, receives);
        if (r == 0) std::fill(sent.begin(), sent.end(), std::byte{2});
      });
    }
    std::thread failing([&] {
      // Later from one repeat to the next, so that some fall into the copying.
      std::this_thread::sleep_for(std::chrono::microseconds(300 * repeat));
      comms[2]->abort("it has failed");
    });
    failing.join();
    for (std::thread& thread : threads) thread.join();
    const auto ones = std::count(received.begin(), received.end(), std::byte{1});
    EXPECT_TRUE(ones == 0 || ones == static_cast<std::ptrdiff_t>(kSize)) << ones;
    EXPECT_EQ(std::count(received.begin(), received.end(), std::byte{2}), 0);
  }
}

TEST(ThreadCommunicators, APositionTellsWhereARankStands) {
  auto comms = thread_communicators(2);
  EXPECT_EQ(comms[0]->position().to_string({}), "before its first operation");
  std::thread other([&] { comms[1]->barrier(); });
  comms[0]->barrier();
  other.join();
  CommPosition position = comms[0]->position();
  EXPECT_FALSE(position.inside);
  const auto later = position.since + std::chrono::seconds(31);
  EXPECT_EQ(position.to_string(later), "computing for 31 s after barrier 1");
  position.inside = true;
  EXPECT_EQ(position.to_string(later), "in barrier 1 (0 bytes) for 31 s");
  position.waiting = true;
  EXPECT_EQ(position.to_string(later), "waiting for work for 31 s after barrier 1");
}

// One rank computes, the other waits for it: each says so, again and again, and nothing else
// happens.
TEST(Watchdogs, TellWhereEachRankStandsWhenNothingMoves) {
  auto comms = thread_communicators(2);
  WatchOptions watch;
  watch.tell_after_seconds = 0.3;
  watch.ends_process = false;
  ::testing::internal::CaptureStderr();
  {
    const Watchdog first(*comms[0], watch);
    const Watchdog second(*comms[1], watch);
    std::thread other([&] {
      comms[1]->barrier();
      std::this_thread::sleep_for(std::chrono::milliseconds(1200));
      comms[1]->barrier();
    });
    comms[0]->barrier();
    comms[0]->barrier();
    other.join();
  }
  const std::string told = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, testing::HasSubstr("rank 0 of 2 is in barrier 2"));
  EXPECT_THAT(told, testing::HasSubstr("rank 1 of 2 is computing for"));
  EXPECT_THAT(told, testing::HasSubstr("after barrier 1"));
  EXPECT_TRUE(comms[0]->status().has_value());
}

TEST(RankInterfaces, AreThoseOfThisMachine) {
  const Status refused = restrict_rank_traffic("lo,nosuch0");
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message, testing::HasSubstr("no network interface 'nosuch0' here"));
  EXPECT_THAT(refused.error().message, testing::HasSubstr("lo"));
  EXPECT_EQ(std::getenv("NCCL_SOCKET_IFNAME"), nullptr);
  ASSERT_TRUE(restrict_rank_traffic("lo").has_value());
  for (const char* const variable :
       {"OMPI_MCA_btl_tcp_if_include", "UCX_NET_DEVICES", "NCCL_SOCKET_IFNAME"}) {
    EXPECT_STREQ(std::getenv(variable), "lo");
    ::unsetenv(variable);
  }
}

TEST(EvenParts, AddUpAndDifferByOneAtMost) {
  EXPECT_THAT(even_parts(10, 4), testing::ElementsAre(3, 3, 2, 2));
  EXPECT_THAT(even_parts(2, 3), testing::ElementsAre(1, 1, 0));
}

}  // namespace
}  // namespace nibble
