// The ranks of one model as threads of this process.
#pragma once

#include <filesystem>
#include <memory>

#include "nibble/engine/loaded_model.h"

namespace nibble {

// Ranks 1 .. shard.tp_size - 1, each of which loads its part of the checkpoint and then lives as
// serve_rank() says. Rank 0 is the caller: it loads with model_options() and makes its engines. The
// destructor waits for the ranks; engine and model of rank 0 are gone by then.
class RankThreads {
 public:
  // model_options.shard says how many ranks and how they share: processors' threads are dealt to
  // them, and on the cuda backend rank r takes GPU model_options.cuda.device + r. A rank's failure
  // shows on rank 0 as the failure of what it does next.
  RankThreads(const std::filesystem::path& directory, const ModelOptions& model_options);
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;
  ~RankThreads();

  // Rank 0's.
  const ModelOptions& model_options() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
