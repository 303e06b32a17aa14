#include "nibble/engine/lane_passes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/engine/padded_batch.h"
#include "nibble/kernels/recorded_context.h"

namespace nibble {
namespace {

// Each rank's answer to rank 0.
Status bring_answers(Communicator& comm, std::span<const PassRound::Part> parts,
                     std::span<const std::byte> mine, std::vector<std::vector<std::byte>>* all) {
  const auto me = static_cast<size_t>(comm.rank());
  NIBBLE_CHECK(static_cast<int64_t>(mine.size()) == parts[me].answer_size);
  std::vector<Communicator::ConstBytes> sends(parts.size());
  std::vector<Communicator::Bytes> receives(parts.size());
  sends[0] = mine;
  if (comm.rank() == 0) {
    NIBBLE_CHECK(all != nullptr);
    all->resize(parts.size());
    for (size_t r = 0; r < parts.size(); ++r) {
      (*all)[r].resize(static_cast<size_t>(parts[r].answer_size));
      receives[r] = (*all)[r];
    }
  }
  comm.all_to_all(sends, receives);
  return comm.status();
}

void append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

// This rank's part of a round; `all` answers come to rank 0.
Status perform_part(LoadedModel& model, LocalPasses& local, const PassRound& round,
                    std::vector<std::vector<std::byte>>* all) {
  const auto me = static_cast<size_t>(model.comm->rank());
  const PassRound::Part& part = round.parts[me];
  PassMessage message;
  if (!part.message.empty()) message = PassMessage::decode(part.message);
  if (round.kind == PassKind::kLogits || round.kind == PassKind::kSample ||
      round.kind == PassKind::kWeights) {
    std::vector<std::byte> answer;
    if (!part.message.empty() && round.kind == PassKind::kWeights) {
      const std::vector<float> weights = local.kept_weights(message.weight_row);
      append(answer, std::as_bytes(std::span(weights)));
    } else if (!part.message.empty() && round.kind == PassKind::kLogits) {
      local.logits(message.from, message.rows, [&](size_t, const MatrixView& logits) {
        for (int64_t r = 0; r < logits.rows; ++r) {
          append(answer, std::as_bytes(std::span(logits.row<const float>(r),
                                                 static_cast<size_t>(logits.cols))));
        }
      });
    } else if (!part.message.empty()) {
      append(answer, std::as_bytes(local.sample(message.from, message.samples())));
    }
    return bring_answers(*model.comm, round.parts, answer, all);
  }
  if (round.kind == PassKind::kKeepHidden) {
    local.keep_hidden(message.kept);
    return {};
  }
  Batch batch;
  if (!part.message.empty()) batch = message.batch();
  std::vector<int64_t> tokens_of_ranks;
  for (const PassRound::Part& of_rank : round.parts) tokens_of_ranks.push_back(of_rank.rows);
  batch.tokens_of_ranks = tokens_of_ranks;
  local.set_recorded_rows(round.recorded_rows);
  if (round.kind == PassKind::kForward) return local.forward(batch);
  return local.forward_mtp(batch, message.previous);
}

// What waits longest goes first.
int priority(PassKind kind) {
  switch (kind) {
    case PassKind::kKeepHidden:
      return 0;
    case PassKind::kLogits:
      return 1;
    case PassKind::kWeights:
    case PassKind::kSample:
      return 2;
    case PassKind::kForwardMtp:
      return 3;
    default:
      return 4;
  }
}

}  // namespace

// One lane's view of the group.
class LanePasses : public ModelPasses {
 public:
  LanePasses(LaneGroup& group, int lane) : group_(group), lane_(lane) {}

  Status forward(const Batch& batch) override {
    return run(PassKind::kForward, PassMessage::forward(batch, group_.block_size_), batch);
  }

  void keep_hidden(std::span<const KeptRow> rows) override {
    (void)run(PassKind::kKeepHidden, PassMessage::keep_hidden(rows), {});
  }

  Status forward_mtp(const Batch& batch, std::span<const HiddenRow> previous) override {
    return run(PassKind::kForwardMtp, PassMessage::forward_mtp(batch, previous, group_.block_size_),
               batch);
  }

  void logits(HiddenRow::From from, std::span<const RowRange> rows,
              const LogitsSink& sink) override {
    if (rows.empty()) return;
    const int64_t vocab = group_.model_.config.vocab_size;
    LaneGroup::Call call;
    call.kind = PassKind::kLogits;
    call.message = PassMessage::logits(from, rows);
    for (const RowRange& range : rows) {
      call.answer_size += range.count * vocab * static_cast<int64_t>(sizeof(float));
    }
    group_.perform(lane_, call);
    std::vector<float> logits(call.answer.size() / sizeof(float));
    std::memcpy(logits.data(), call.answer.data(), call.answer.size());
    int64_t at = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      sink(i, MatrixView{logits.data() + at * vocab, DType::kF32, rows[i].count, vocab, vocab});
      at += rows[i].count;
    }
  }

  bool can_sample() const override { return group_.local_->can_sample(); }

  // All ranks record the same.
  StepGraphStats graph_stats() const override {
    return lane_ == 0 ? group_.local_->graph_stats() : StepGraphStats();
  }
  int64_t num_replayed() const override { return lane_ == 0 ? group_.local_->num_replayed() : 0; }

  std::span<const SampledRow> sample(HiddenRow::From from,
                                     std::span<const SampleRow> rows) override {
    sampled_.resize(rows.size());
    if (rows.empty()) return sampled_;
    LaneGroup::Call call;
    call.kind = PassKind::kSample;
    call.message = PassMessage::sample(from, rows);
    call.answer_size = static_cast<int64_t>(rows.size() * sizeof(SampledRow));
    group_.perform(lane_, call);
    std::memcpy(sampled_.data(), call.answer.data(), call.answer.size());
    return sampled_;
  }

  int64_t num_weight_rows() const override { return group_.local_->num_weight_rows(); }

  std::vector<float> kept_weights(int64_t row) override {
    std::vector<float> weights(static_cast<size_t>(group_.model_.config.vocab_size));
    LaneGroup::Call call;
    call.kind = PassKind::kWeights;
    call.message = PassMessage::weights(row);
    call.answer_size = static_cast<int64_t>(std::span(weights).size_bytes());
    group_.perform(lane_, call);
    std::memcpy(weights.data(), call.answer.data(), call.answer.size());
    return weights;
  }

 private:
  Status run(PassKind kind, std::vector<std::byte> message, const Batch& batch) {
    LaneGroup::Call call;
    call.kind = kind;
    call.message = std::move(message);
    call.rows = batch.num_tokens();
    call.is_generated = is_generated(batch);
    call.context = recorded_context(batch.attention);
    group_.perform(lane_, call);
    return call.status;
  }

  LaneGroup& group_;
  int lane_;
  std::vector<SampledRow> sampled_;
};

LaneGroup::LaneGroup(LoadedModel& model, SetUpPasses local, int64_t block_size)
    : model_(model),
      local_(std::move(local.passes)),
      num_blocks_(local.num_blocks),
      block_size_(block_size),
      calls_(static_cast<size_t>(model.comm->size())),
      link_(*model.comm) {}

Result<std::unique_ptr<LaneGroup>> LaneGroup::create(LoadedModel& model, const PassPlan& plan) {
  SetUpPasses local = NIBBLE_TRY(set_up_all_ranks(model, plan));
  return std::unique_ptr<LaneGroup>(new LaneGroup(model, std::move(local), plan.cache.block_size));
}

std::unique_ptr<ModelPasses> LaneGroup::passes(int lane) {
  return std::make_unique<LanePasses>(*this, lane);
}

void LaneGroup::enter(int num_lanes) {
  const std::lock_guard lock(mutex_);
  NIBBLE_CHECK(num_in_step_ == 0 && num_calls_ == 0);
  num_in_step_ = num_lanes;
}

void LaneGroup::leave() {
  const std::lock_guard lock(mutex_);
  --num_in_step_;
  changed_.notify_all();  // the others may have waited for this lane alone
}

void LaneGroup::perform(int lane, Call& call) {
  std::unique_lock lock(mutex_);
  calls_[static_cast<size_t>(lane)] = &call;
  ++num_calls_;
  changed_.notify_all();
  // Whoever sees that all have come runs the round for all.
  while (!call.is_done && !failure_) {
    if (num_calls_ < num_in_step_) {
      changed_.wait(lock);
      continue;
    }
    try {
      run_round();
    } catch (const std::exception& failure) {
      // Of any kind, as the other lanes' calls must not outlive it; and for good, as the ranks no
      // longer agree on where they are, so not as a lack of memory that passes.
      failure_ = Error{ErrorCode::kUnavailable, failure.what()};
    }
    changed_.notify_all();
  }
  if (call.is_done) return;
  calls_[static_cast<size_t>(lane)] = nullptr;
  --num_calls_;
  throw PassFailure(*failure_);
}

// Ranks record and replay alike, as NCCL asks for: the same numbers of tokens, laid out for the
// same context.
int64_t LaneGroup::recorded_rows(PassKind kind) const {
  if (kind != PassKind::kForward && kind != PassKind::kForwardMtp) return 0;
  std::vector<int64_t> rows;
  for (const Call* call : calls_) {
    if (call == nullptr || call->kind != kind || !call->is_generated) return 0;
    if (call->context != calls_.front()->context) return 0;
    rows.push_back(call->rows);
  }
  return recorded_size(rows, local_->graph_sizes());
}

// With mutex_ held.
void LaneGroup::run_round() {
  PassRound round;
  round.kind = PassKind::kForward;
  for (const Call* call : calls_) {
    if (call != nullptr && priority(call->kind) < priority(round.kind)) round.kind = call->kind;
  }
  round.recorded_rows = recorded_rows(round.kind);
  for (const Call* call : calls_) {
    PassRound::Part& part = round.parts.emplace_back();
    if (call == nullptr || call->kind != round.kind) continue;
    part = {call->rows, call->answer_size, call->message};
  }
  const auto held = link_.hold();
  link_.send(PassMessage::of_round(round));
  std::vector<std::vector<std::byte>> answers(calls_.size());
  const Status status = perform_part(model_, *local_, round, &answers);
  if (const Status ranks = model_.comm->status(); !ranks) throw PassFailure(ranks.error());
  for (size_t lane = 0; lane < calls_.size(); ++lane) {
    Call* const call = calls_[lane];
    if (call == nullptr || call->kind != round.kind) continue;
    call->answer = std::move(answers[lane]);
    call->status = status;
    call->is_done = true;
    calls_[lane] = nullptr;
    --num_calls_;
  }
}

Status carry_out_round(const PassMessage& message, LoadedModel& model, LocalPasses& local) {
  return perform_part(model, local, message.round, nullptr);
}

}  // namespace nibble
