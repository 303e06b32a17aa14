// The engine's memory over many requests.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>
#include <random>

#include "nibble/engine/engine.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

// Bytes that the allocator has handed out; 0 where it doesn't say (sanitizers).
size_t heap_bytes() { return ::mallinfo2().uordblks + ::mallinfo2().hblkhd; }

// Sampled, guided, scored and cancelled requests with drafts, over a pool small enough that
// prefixes are forgotten. NIBBLE_TEST_REQUESTS sets how many (10,000 were run by hand).
TEST(EngineMemory, DoesNotGrowWithTheNumberOfRequests) {
  if (heap_bytes() == 0) GTEST_SKIP() << "the allocator of this build counts nothing";
  const char* const asked = std::getenv("NIBBLE_TEST_REQUESTS");
  const int64_t count = asked != nullptr ? std::atoll(asked) : 500;
  const auto model = testing::load_model(testing::demo_checkpoint(), "cpu");
  EngineOptions options;
  options.num_blocks = 96;
  options.num_drafts = 2;
  options.max_batch_size = 16;
  auto engine = Engine::create(*model, options).value();
  std::mt19937 rng(1);
  int64_t added = 0;
  int64_t ended = 0;
  size_t warm = 0;
  size_t peak = 0;  // behind the first half
  while (ended < count) {
    while (added < count && engine->stats().num_running + engine->stats().num_waiting < 24) {
      Request request;
      const size_t size = 4 + rng() % 60;
      for (size_t i = 0; i < size; ++i) {
        request.prompt_token_ids.push_back(static_cast<int32_t>(300 + rng() % 200));
      }
      request.params.max_tokens = 1 + static_cast<int64_t>(rng() % 8);
      request.params.seed = added;
      request.params.stop = {"never there"};
      if (added % 3 == 0) request.params.logprobs = 3;
      if (added % 4 == 0) request.params.repetition_penalty = 1.1;
      if (added % 5 == 0) request.params.guided = Guided{Guided::Kind::kJsonObject, "", {}, true};
      if (added % 7 == 0) request.params.prompt_logprobs = 1;
      const uint64_t id = engine->add(std::move(request)).value();
      if (added % 11 == 0) engine->cancel(id);
      ++added;
    }
    for (const RequestUpdate& update : engine->step()) ended += update.finished ? 1 : 0;
    if (ended < count / 2) {
      warm = std::max(warm, heap_bytes());
    } else {
      peak = std::max(peak, heap_bytes());
    }
  }
  std::cout << count << " requests: highest heap " << warm << " bytes in the first half, " << peak
            << " in the second\n";
  EXPECT_EQ(engine->stats().num_used_blocks, 0);
  // A queue of 24 requests swings by more than this; a leak of 1 KB a request would show.
  EXPECT_LT(peak, warm + static_cast<size_t>(count) / 2 * 1024);
}

}  // namespace
}  // namespace nibble
