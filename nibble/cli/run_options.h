// What nibble run was asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nibble/checkpoint/generation_config.h"
#include "nibble/cli/backend_options.h"
#include "nibble/cli/expert_arguments.h"
#include "nibble/cli/parallel_options.h"
#include "nibble/engine/engine.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/sampling_params.h"

namespace CLI {
class App;
}

namespace nibble {

struct RunOptions {
  std::string model = "demo";
  std::vector<std::string> prompts;
  std::string prompt_file;
  bool chat = false;
  std::string system;
  std::string chat_template;
  std::string thinking = "auto";
  bool hide_thinking = false;

  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<int64_t> seed;
  bool ignore_eos = false;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  int64_t min_tokens = 0;

  // At most one of the four.
  std::string guided_json;  // file of a JSON schema
  bool guided_json_object = false;
  std::string guided_regex;
  std::vector<std::string> guided_choice;
  std::optional<int64_t> thinking_budget;

  ExpertArguments experts;

  BackendOptions backend;
  ParallelOptions parallel;
  bool w4a4 = false;
  std::string kv_cache_dtype = "auto";
  int64_t max_seq_len = 0;
  int64_t chunk_size = 512;
  int64_t num_drafts = 0;
  bool adaptive_drafts = false;
  bool draft_sampling = false;
  std::optional<int64_t> relaxed_topk;
  std::optional<double> relaxed_delta;

  bool json = false;
  bool quiet = false;
  bool verbose = false;
};

// Registers all of them on `command`.
void add_run_options(CLI::App& command, RunOptions* options);

// The sampling that was asked for; the model's generation_config.json fills what was left open, and
// without it temperature 1 and top_p 1. Errors: those of validate(SamplingParams).
Result<SamplingParams> sampling_params(const RunOptions& options, const GenerationConfig& defaults);

// Checked before anything is loaded. Errors: kInvalidArgument naming option and range.
Result<ModelOptions> model_options(const RunOptions& options);

// An engine for one request at a time.
Result<EngineOptions> run_engine_options(const RunOptions& options);

}  // namespace nibble
