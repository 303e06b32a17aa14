#include "nibble/engine/rank_link.h"

#include <utility>

#include "nibble/base/check.h"
#include "nibble/engine/pass_message.h"

namespace nibble {
namespace {

constexpr std::chrono::seconds kTouchInterval{2};

}  // namespace

RankLink::RankLink(Communicator& comm)
    : comm_(comm),
      last_call_(std::chrono::steady_clock::now()),
      thread_([this] { keep_in_touch(); }) {}

RankLink::~RankLink() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
  std::vector<std::byte> message = PassMessage::of_kind(PassKind::kStop);
  comm_.broadcast_message(message, 0);  // does nothing when a rank has failed
}

void RankLink::keep_in_touch() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kTouchInterval, [&] { return stopping_; })) {
    if (std::chrono::steady_clock::now() - last_call_ < kTouchInterval) continue;
    std::vector<std::byte> message = PassMessage::of_kind(PassKind::kNothing);
    comm_.broadcast_message(message, 0);
    comm_.barrier();
    if (!comm_.status()) return;  // the next call tells
    last_call_ = std::chrono::steady_clock::now();
  }
}

void RankLink::send(std::vector<std::byte> message) {
  comm_.broadcast_message(message, 0);
  const Status status = comm_.status();
  if (!status) throw PassFailure(status.error());
  last_call_ = std::chrono::steady_clock::now();
}

Result<SetUpPasses> set_up_all_ranks(LoadedModel& model, const PassPlan& plan) {
  NIBBLE_CHECK(model.comm != nullptr && model.comm->rank() == 0);
  std::vector<std::byte> message = PassMessage::set_up(plan);
  model.comm->broadcast_message(message, 0);
  NIBBLE_TRY(model.comm->status());
  return set_up_passes(model, plan);
}

}  // namespace nibble
