// An engine whose logits lie on a device, with the sampler's contract in place of a GPU: the tokens
// are those of an engine whose host samples, whatever part of the rows the device leaves to it.
#include <gtest/gtest.h>

#include <map>

#include "nibble/engine/engine.h"
#include "tests/engine/told_sampler.h"
#include "tests/model/demo.h"
#include "tests/model/forwarding_kernels.h"

namespace nibble {
namespace {

class SamplingKernels final : public testing::ForwardingKernels {
 public:
  SamplingKernels(std::unique_ptr<Kernels> inner, double left_to_host)
      : ForwardingKernels(std::move(inner)), left_to_host_(left_to_host) {}
  Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t /*vocab_size*/) override {
    return std::unique_ptr<DeviceSampler>(std::make_unique<testing::ToldSampler>(left_to_host_));
  }

 private:
  double left_to_host_;
};

std::unique_ptr<LoadedModel> load(std::optional<double> left_to_host) {
  auto model = testing::load_model(testing::demo_checkpoint(), "cpu");
  if (left_to_host) {
    model->kernels = std::make_unique<SamplingKernels>(std::move(model->kernels), *left_to_host);
  }
  return model;
}

// Greedy, drawn with several filters, penalised, guided, with log-probabilities.
std::vector<Request> requests() {
  const auto prompts = testing::reference_prompts();
  std::vector<Request> all;
  for (size_t i = 0; i < 12; ++i) {
    Request request;
    request.prompt_token_ids = prompts[i % prompts.size()].ids;
    SamplingParams& params = request.params;
    params.max_tokens = 20 + static_cast<int64_t>(i);
    params.seed = static_cast<int64_t>(i);
    params.temperature = i % 4 == 0 ? 0 : 0.9;
    if (i % 3 == 1) params.top_p = 0.8;
    if (i % 3 == 2) params.top_k = 5;
    if (i % 5 == 2) params.repetition_penalty = 1.2;
    if (i % 5 == 3) params.logprobs = 2;
    params.ignore_eos = i % 6 != 5;
    if (i % 6 == 5) params.guided = Guided{Guided::Kind::kRegex, "[a-z ]{15}", {}, true};
    all.push_back(std::move(request));
  }
  return all;
}

struct Outcome {
  std::vector<std::vector<int32_t>> outputs;
  EngineStats stats;
};

Outcome run_all(LoadedModel& model, const EngineOptions& options) {
  auto engine = Engine::create(model, options).value();
  std::map<uint64_t, size_t> places;
  for (const Request& request : requests()) {
    const auto id = engine->add(request);
    EXPECT_TRUE(id.has_value()) << id.error().message;
    if (id) places.emplace(*id, places.size());
  }
  Outcome result;
  result.outputs.resize(places.size());
  while (engine->has_work()) {
    for (const RequestUpdate& update : engine->step()) {
      EXPECT_FALSE(update.error.has_value());
      auto& tokens = result.outputs[places.at(update.id)];
      tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
    }
  }
  result.stats = engine->stats();
  return result;
}

EngineOptions options(int64_t num_drafts, bool draw) {
  EngineOptions options;
  options.num_drafts = num_drafts;
  options.draft.draft_sampling = draw;
  options.num_blocks = 200;
  return options;
}

TEST(DeviceSampledEngine, GivesTheHostsTokensWithDrawnDrafts) {
  const auto of_host = load(std::nullopt);
  for (const int64_t num_drafts : {1, 3}) {
    const Outcome want = run_all(*of_host, options(num_drafts, true));
    EXPECT_EQ(want.stats.num_device_drafts, 0);
    for (const double left_to_host : {0.0, 0.3, 1.0}) {
      const auto model = load(left_to_host);
      const Outcome got = run_all(*model, options(num_drafts, true));
      EXPECT_EQ(got.outputs, want.outputs) << num_drafts << " drafts, " << left_to_host;
      EXPECT_GT(got.stats.num_device_drafts, 50);
      EXPECT_GT(got.stats.accepted_at[0], 10);
      if (left_to_host == 0) {  // where a greedy draft is undecided there is none
        EXPECT_EQ(got.stats.accepted_at, want.stats.accepted_at);
        EXPECT_EQ(got.stats.num_host_drafts, 0);
        EXPECT_EQ(got.stats.num_host_windows, 0);
      } else {
        EXPECT_GT(got.stats.num_host_drafts, 10);
        EXPECT_GT(got.stats.num_host_windows, 10);
      }
    }
  }
}

// Drafts that are kept through a preemption or thrown away give their rows back: none is left over
// when they have come and gone many times.
TEST(DeviceSampledEngine, RunsOutOfNoRows) {
  EngineOptions tight = options(2, true);
  tight.block_size = 8;
  tight.num_blocks = 125;  // one prompt has 900 tokens
  const Outcome want = run_all(*load(std::nullopt), tight);
  const Outcome got = run_all(*load(0.0), tight);
  EXPECT_EQ(got.outputs, want.outputs);
  EXPECT_GE(got.stats.num_preemptions, 2);
  EXPECT_EQ(got.stats.num_host_drafts, 0);
}

TEST(DeviceSampledEngine, GivesTheHostsTokensWithoutDrawnDrafts) {
  for (const int64_t num_drafts : {0, 2}) {
    const Outcome want = run_all(*load(std::nullopt), options(num_drafts, false));
    const Outcome got = run_all(*load(0.1), options(num_drafts, false));
    EXPECT_EQ(got.outputs, want.outputs) << num_drafts;
    EXPECT_GT(got.stats.num_host_windows, 0);
  }
}

}  // namespace
}  // namespace nibble
