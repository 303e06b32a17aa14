#include "nibble/engine/rank_threads.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/cpu_features.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/comm/watchdog.h"
#include "nibble/engine/rank_passes.h"

namespace nibble {

struct RankThreads::State {
  ModelOptions rank_0;
  std::vector<std::unique_ptr<Communicator>> comms;  // entry 0 stays here
  std::vector<std::thread> threads;
};

namespace {

// One rank's life. Its communicator ends with it, so that nobody waits for a rank that is gone.
void live_as_rank(const std::filesystem::path& directory, const ModelOptions& options,
                  std::unique_ptr<Communicator> comm) {
  WatchOptions watch;
  watch.ends_process = false;  // rank 0 does
  const Watchdog watchdog(*comm, watch);
  try {
    const auto model = LoadedModel::load(directory, options);
    if (model) {
      (void)serve_rank(**model);  // it tells the others of a failure
    } else {
      comm->abort(model.error().message);
    }
  } catch (const std::exception& exception) {
    comm->abort(exception.what());
  }
}

}  // namespace

RankThreads::RankThreads(const std::filesystem::path& directory, const ModelOptions& model_options)
    : state_(std::make_unique<State>()) {
  const int size = model_options.shard.tp_size;
  NIBBLE_CHECK(size >= 1);
  state_->comms = thread_communicators(size);
  const int threads = model_options.threads > 0 ? model_options.threads : available_processors();
  std::vector<ModelOptions> of_ranks;
  for (int r = 0; r < size; ++r) {
    ModelOptions options = model_options;
    options.shard.rank = r;
    options.comm = size > 1 ? state_->comms[static_cast<size_t>(r)].get() : nullptr;
    options.threads = std::max(1, threads / size);
    options.cuda.device += r;
    if (r > 0) {
      options.show_progress = false;
      options.on_progress = {};
    }
    of_ranks.push_back(std::move(options));
  }
  state_->rank_0 = of_ranks[0];
  for (int r = 1; r < size; ++r) {
    const auto i = static_cast<size_t>(r);
    state_->threads.emplace_back(
        [directory, options = of_ranks[i], comm = std::move(state_->comms[i])]() mutable {
          live_as_rank(directory, options, std::move(comm));
        });
  }
}

const ModelOptions& RankThreads::model_options() const { return state_->rank_0; }

RankThreads::~RankThreads() {
  // Rank 0 is at its end: one that still waits for it would wait for ever.
  state_->comms[0]->abort("rank 0 has ended");
  for (std::thread& thread : state_->threads) thread.join();
}

}  // namespace nibble
