#include "nibble/offload/host_expert_rates.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <limits>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 5;  // the best counts: the first ones start threads and clocks

double seconds_from(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Experts that stay in RAM until it goes.
class FetchedExperts {
 public:
  explicit FetchedExperts(TieredStore& ram) : ram_(ram) {}
  FetchedExperts(const FetchedExperts&) = delete;
  FetchedExperts& operator=(const FetchedExperts&) = delete;
  ~FetchedExperts() {
    for (const HotExpert& expert : fetched_) ram_.end_fetch(expert.layer, expert.expert);
  }

  Status add(const HotExpert& expert) {
    std::promise<Result<TieredStore::Fetched>> done;
    auto fetched =
        ram_.fetch(expert.layer, expert.expert, true,
                   [&](Result<TieredStore::Fetched> result) { done.set_value(std::move(result)); });
    if (!fetched) fetched = NIBBLE_TRY(done.get_future().get());
    fetched_.push_back(expert);
    experts_.push_back(*fetched);
    return {};
  }
  std::span<const TieredStore::Fetched> experts() const { return experts_; }

 private:
  TieredStore& ram_;
  std::vector<HotExpert> fetched_;
  std::vector<TieredStore::Fetched> experts_;
};

// Of one expert over `tokens` tokens, on the average of all.
double compute_seconds(HostMlp& mlp, std::span<const TieredStore::Fetched> experts, size_t tokens) {
  const MlpWeight& like = experts.front().weight;
  const auto in = static_cast<size_t>(like.gate_proj.cols);
  const auto out = static_cast<size_t>(like.down_proj.rows);
  std::vector<float> x(tokens * in, 0.5f);
  std::vector<float> y(tokens * out * experts.size());
  std::vector<const float*> from;
  for (size_t t = 0; t < tokens; ++t) from.push_back(x.data() + t * in);
  std::vector<std::vector<float*>> to;
  std::vector<HostMlpRun> runs;
  for (size_t e = 0; e < experts.size(); ++e) {
    auto& rows = to.emplace_back();
    for (size_t t = 0; t < tokens; ++t) rows.push_back(y.data() + (e * tokens + t) * out);
  }
  for (size_t e = 0; e < experts.size(); ++e) runs.push_back({&experts[e].weight, from, to[e]});
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = Clock::now();
    mlp.run(runs);
    best = std::min(best, seconds_from(begin));
  }
  return best / static_cast<double>(experts.size());
}

Result<double> copy_seconds(TransferQueue& queue, std::span<const TieredStore::Fetched> experts,
                            Device& device) {
  const size_t bytes = experts.front().record.size();
  const Buffer slots = NIBBLE_TRY(device.allocate(bytes * experts.size()));
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = Clock::now();
    uint64_t last = 0;
    for (size_t e = 0; e < experts.size(); ++e) {
      last = queue.copy(slots.as<std::byte>() + e * bytes,
                        experts[e].record.first(std::min(bytes, experts[e].record.size())), 0);
    }
    NIBBLE_TRY(queue.wait(last));
    best = std::min(best, seconds_from(begin));
  }
  return best / static_cast<double>(experts.size());
}

}  // namespace

Result<HostExpertRates> measure_host_experts(TieredStore& ram, std::span<const HotExpert> experts,
                                             HostMlp& mlp, Device& device, int copy_streams) {
  NIBBLE_CHECK(!experts.empty());
  const auto queue = NIBBLE_TRY(device.make_transfer_queue(copy_streams));
  if (queue == nullptr) return unsupported("the device takes no copies beside its work");
  FetchedExperts fetched(ram);
  for (const HotExpert& expert : experts) NIBBLE_TRY(fetched.add(expert));
  HostExpertRates rates;
  rates.copy = NIBBLE_TRY(copy_seconds(*queue, fetched.experts(), device));
  rates.first_token = compute_seconds(mlp, fetched.experts(), 1);
  constexpr size_t kTokens = 4;
  rates.next_token =
      std::max(0.0, compute_seconds(mlp, fetched.experts(), kTokens) - rates.first_token) /
      (kTokens - 1);
  return rates;
}

}  // namespace nibble
