// The demo checkpoint, in FP8 and quantized, on any number of ranks.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nibble/engine/engine.h"
#include "nibble/engine/rank_threads.h"
#include "nibble/quantize/quantize.h"
#include "tests/base/temporary_folder.h"
#include "tests/model/demo.h"

namespace nibble::testing {

enum class ParallelFormat { kFp8, kW4A16, kW4A4 };

// Everything that can be NVFP4 is: attention, dense, shared and routed MLPs, the MTP layer.
inline std::filesystem::path nvfp4_demo() {
  static const TemporaryFolder folder;
  static const std::filesystem::path path = [] {
    const std::filesystem::path out = std::filesystem::path(folder / "nvfp4");
    QuantizeOptions options;
    options.recipe.scheme = QuantizeScheme::kNvfp4All;
    options.threads = 2;
    const auto report = quantize_checkpoint(demo_checkpoint(), out, options);
    if (!report) throw std::runtime_error(report.error().message);
    return out;
  }();
  return path;
}

inline std::filesystem::path checkpoint_of(ParallelFormat format) {
  return format == ParallelFormat::kFp8 ? demo_checkpoint() : nvfp4_demo();
}

// One thread a rank.
inline ModelOptions rank_options(ParallelFormat format, const Shard& shard) {
  ModelOptions options;
  options.backend = "cpu";
  options.shard = shard;
  options.threads = shard.tp_size;
  if (format == ParallelFormat::kW4A4) options.nvfp4_activation = ActivationFormat::kNvfp4;
  return options;
}

struct ParallelRun {
  std::vector<std::vector<int32_t>> token_ids;  // in order of the requests
  std::vector<double> logprobs;                 // of them, where they were asked for
  EngineStats stats;
};

// Adds all requests, then steps until they are done. In two halves, so that the second finds the
// first one's prefixes.
inline ParallelRun run_requests(Engine& engine, const std::vector<Request>& requests) {
  ParallelRun run;
  run.token_ids.resize(requests.size());
  for (size_t half = 0; half < 2; ++half) {
    std::map<uint64_t, size_t> index;
    const size_t begin = half * requests.size() / 2;
    const size_t end = (half + 1) * requests.size() / 2;
    for (size_t i = begin; i < end; ++i) index[engine.add(requests[i]).value()] = i;
    while (engine.has_work()) {
      for (const RequestUpdate& update : engine.step()) {
        if (update.error) throw std::runtime_error(update.error->message);
        auto& tokens = run.token_ids[index.at(update.id)];
        tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
        for (const PositionLogprobs& entry : update.logprobs) {
          run.logprobs.push_back(entry.chosen.logprob);
        }
      }
    }
  }
  run.stats = engine.stats();
  return run;
}

// Loads the checkpoint on the shard's ranks, threads of this process, and runs the requests.
inline ParallelRun run_on_ranks(ParallelFormat format, const Shard& shard,
                                const EngineOptions& options, const std::vector<Request>& requests,
                                const std::filesystem::path& expert_placement = {}) {
  ModelOptions model_options = rank_options(format, shard);
  model_options.expert_placement = expert_placement;
  RankThreads ranks(checkpoint_of(format), model_options);
  auto model = LoadedModel::load(checkpoint_of(format), ranks.model_options());
  if (!model) throw std::runtime_error(model.error().message);
  auto engine = Engine::create(**model, options);
  if (!engine) throw std::runtime_error(engine.error().message);
  return run_requests(**engine, requests);
}

}  // namespace nibble::testing
