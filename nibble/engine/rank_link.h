// Rank 0's line to the other ranks: what they carry out goes over it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/comm/communicator.h"
#include "nibble/engine/pass_plan.h"

namespace nibble {

// For the life of one engine. While there is no work the ranks meet every few seconds all the same,
// so that a lost one is noticed. The destructor ends the engine's caches on the other ranks.
class RankLink {
 public:
  // The communicator, of host memory, must outlive it.
  explicit RankLink(Communicator& comm);
  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;
  ~RankLink();

  // To be held from send() until this rank has done its part: one call at a time.
  [[nodiscard]] std::unique_lock<std::mutex> hold() { return std::unique_lock(mutex_); }

  // A PassMessage to all other ranks. Throws PassFailure when one has failed.
  void send(std::vector<std::byte> message);

 private:
  void keep_in_touch();

  Communicator& comm_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::chrono::steady_clock::time_point last_call_;
  bool stopping_ = false;
  std::thread thread_;
};

// On rank 0: set_up_passes() on all ranks. Errors: those of set_up_passes().
Result<SetUpPasses> set_up_all_ranks(LoadedModel& model, const PassPlan& plan);

}  // namespace nibble
