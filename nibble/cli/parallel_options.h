// --tp_size and its like, the same for every command that runs a model.
#pragma once

#include <cstdint>
#include <string>

#include "nibble/base/result.h"
#include "nibble/engine/rank_group.h"

namespace CLI {
class App;
}

namespace nibble {

struct ParallelOptions {
  int64_t tp_size = 0;  // 0: one, or as many ranks as the MPI job has
  int64_t ep_size = 0;  // 0: 1, with attention data parallel tp_size
  bool enable_attention_dp = false;
  std::string all2all_backend = "auto";
  std::string communicator = "auto";
  double rank_timeout = 120;
  std::string rank_interfaces;
  std::string expert_placement;
};

void add_parallel_options(CLI::App& command, ParallelOptions* options, const std::string& group);

// What they mean for a model and its ranks. Errors: kInvalidArgument naming option and range.
Result<RankOptions> apply(const ParallelOptions& options, ModelOptions* model);

}  // namespace nibble
