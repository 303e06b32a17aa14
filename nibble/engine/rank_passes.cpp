#include "nibble/engine/rank_passes.h"

#include <exception>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/engine/lane_passes.h"
#include "nibble/engine/pass_message.h"

namespace nibble {
namespace {

// One message of rank 0, but for kEnd.
Status carry_out(const PassMessage& message, LoadedModel& model,
                 std::unique_ptr<LocalPasses>& passes) {
  NIBBLE_CHECK(passes != nullptr || message.kind == PassKind::kSetUp ||
               message.kind == PassKind::kStop);
  switch (message.kind) {
    case PassKind::kSetUp:
      passes = NIBBLE_TRY(set_up_passes(model, message.plan)).passes;
      return {};
    case PassKind::kForward:
      NIBBLE_TRY(passes->forward(message.batch()));
      // Rank 0 waits for the logits now: time to see whether this device is well.
      if (!passes->needs_head(HiddenRow::From::kStep)) passes->finish();
      return {};
    case PassKind::kForwardMtp:
      return passes->forward_mtp(message.batch(), message.previous);
    case PassKind::kKeepHidden:
      passes->keep_hidden(message.kept);
      return {};
    case PassKind::kLogits:
      passes->logits(message.from, message.rows, {});
      return {};
    case PassKind::kHead:
      passes->run_head_over(message.from, message.head_rows);
      passes->finish();
      return {};
    case PassKind::kRound:
      return carry_out_round(message, model, *passes);
    case PassKind::kNothing:
      model.comm->barrier();
      return {};
    default:
      passes.reset();
      return {};
  }
}

}  // namespace

RankPasses::RankPasses(Communicator& comm, SetUpPasses local, int64_t block_size)
    : local_(std::move(local.passes)),
      num_blocks_(local.num_blocks),
      block_size_(block_size),
      link_(comm) {}

Result<std::unique_ptr<RankPasses>> RankPasses::create(LoadedModel& model, const PassPlan& plan) {
  SetUpPasses local = NIBBLE_TRY(set_up_all_ranks(model, plan));
  return std::unique_ptr<RankPasses>(
      new RankPasses(*model.comm, std::move(local), plan.cache.block_size));
}

Status RankPasses::forward(const Batch& batch) {
  const auto held = link_.hold();
  link_.send(PassMessage::forward(batch, block_size_));
  return local_->forward(batch);
}

void RankPasses::keep_hidden(std::span<const KeptRow> rows) {
  const auto held = link_.hold();
  link_.send(PassMessage::keep_hidden(rows));
  local_->keep_hidden(rows);
}

Status RankPasses::forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) {
  const auto held = link_.hold();
  link_.send(PassMessage::forward_mtp(batch, previous, block_size_));
  return local_->forward_mtp(batch, previous);
}

void RankPasses::logits(HiddenRow::From from, std::span<const RowRange> rows,
                        const LogitsSink& sink) {
  if (rows.empty()) return;
  const auto held = link_.hold();
  link_.send(PassMessage::logits(from, rows));
  local_->logits(from, rows, sink);
}

std::span<const SampledRow> RankPasses::sample(HiddenRow::From from,
                                               std::span<const SampleRow> rows) {
  const auto held = link_.hold();
  if (!rows.empty() && local_->needs_head(from)) {
    link_.send(PassMessage::head(from, LocalPasses::head_rows(rows)));
  }
  return local_->sample(from, rows);
}

// Sampling is rank 0's alone.
std::vector<float> RankPasses::kept_weights(int64_t row) {
  const auto held = link_.hold();
  return local_->kept_weights(row);
}

Status serve_rank(LoadedModel& model) {
  NIBBLE_CHECK(model.comm != nullptr && model.comm->rank() != 0);
  Communicator& comm = *model.comm;
  std::unique_ptr<LocalPasses> passes;
  std::vector<std::byte> bytes;
  const auto give_up = [&](Error error) -> Status {
    NIBBLE_TRY(comm.status());  // another rank's failure has its own words
    comm.abort(error.message);
    return tl::unexpected(std::move(error));
  };
  try {
    for (;;) {
      {
        const Communicator::IdleScope idle(comm);
        comm.broadcast_message(bytes, 0);
      }
      NIBBLE_TRY(comm.status());
      const PassMessage message = PassMessage::decode(bytes);
      if (message.kind == PassKind::kEnd) return {};
      Status done = carry_out(message, model, passes);
      NIBBLE_TRY(comm.status());
      if (!done) return give_up(std::move(done).error());
    }
  } catch (const PassFailure& failure) {
    return give_up(failure.error());
  } catch (const std::exception& exception) {
    return give_up({ErrorCode::kUnavailable, exception.what()});
  }
}

}  // namespace nibble
