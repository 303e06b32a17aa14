// Requests that runs with experts in tiers answer, and what the plain model answers.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "nibble/engine/engine.h"
#include "tests/offload/offload_fixture.h"

namespace nibble::testing {

inline std::vector<Request> offload_requests() {
  std::vector<Request> requests;
  for (const auto& prompt : reference_prompts()) {
    Request request;
    request.prompt_token_ids = prompt.ids;
    const auto i = static_cast<int64_t>(requests.size());
    request.params.temperature = i % 2 == 0 ? 0 : 0.8;
    request.params.seed = i;
    request.params.max_tokens = 16 + i;
    request.params.ignore_eos = true;
    request.params.logprobs = kMaxLogprobs;
    requests.push_back(std::move(request));
    if (requests.size() == 6) break;
  }
  return requests;
}

// What a request got: its tokens, and for each the 20 highest log probabilities with theirs. These
// are doubles from all of the step's logits, so equal ones mean logits of equal bits.
struct OffloadOutput {
  std::vector<int32_t> tokens;
  std::vector<double> logprobs;

  bool operator==(const OffloadOutput&) const = default;

  void add(const RequestUpdate& update) {
    tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
    for (const PositionLogprobs& position : update.logprobs) {
      for (const TokenLogprob& entry : position.top) {
        logprobs.push_back(entry.id);
        logprobs.push_back(entry.logprob);
      }
    }
  }
};

struct OffloadRun {
  std::vector<OffloadOutput> outputs;
  EngineStats stats;
};

inline OffloadRun run_requests(LoadedModel& model, int64_t batch, int64_t drafts) {
  EngineOptions options;
  options.max_batch_size = batch;
  options.max_num_tokens = 64;
  options.num_drafts = drafts;
  options.num_blocks = 256;
  auto engine = Engine::create(model, options);
  if (!engine) throw std::runtime_error(engine.error().message);
  std::vector<uint64_t> ids;
  for (Request& request : offload_requests()) {
    ids.push_back((*engine)->add(std::move(request)).value());
  }
  std::map<uint64_t, OffloadOutput> outputs;
  while ((*engine)->has_work()) {
    for (const RequestUpdate& update : (*engine)->step()) {
      EXPECT_FALSE(update.error.has_value()) << update.error->message;
      outputs[update.id].add(update);
    }
  }
  OffloadRun run;
  for (const uint64_t id : ids) {
    EXPECT_GE(outputs[id].logprobs.size(), outputs[id].tokens.size() * 2 * kMaxLogprobs);
    run.outputs.push_back(outputs[id]);
  }
  run.stats = (*engine)->stats();
  return run;
}

// The demo model with its experts from `store` instead of its own.
class Tiered {
 public:
  explicit Tiered(std::unique_ptr<TieredStore> store) : store_(std::move(store)) {
    static const std::unique_ptr<LoadedModel> model = load_model(demo_checkpoint(), "cpu");
    model_ = model.get();
    model_->weights.expert_store = store_.get();
  }
  ~Tiered() { model_->weights.expert_store = nullptr; }
  LoadedModel& model() { return *model_; }
  TieredStore& store() { return *store_; }

 private:
  std::unique_ptr<TieredStore> store_;
  LoadedModel* model_;
};

inline const OffloadRun& plain_run(int64_t drafts) {
  static std::map<int64_t, OffloadRun> runs;
  const auto found = runs.find(drafts);
  if (found != runs.end()) return found->second;
  const auto model = load_model(demo_checkpoint(), "cpu");
  return runs.emplace(drafts, run_requests(*model, 1, drafts)).first->second;
}

}  // namespace nibble::testing
