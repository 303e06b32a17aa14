// The requests that nibble bench serve sends: made up, or from a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/server/load_generator.h"

namespace nibble {

struct LoadDataset {
  // random: token ids. sharegpt: the first texts of a JSON array of conversations. jsonl: prompt,
  // messages (and tools) or input_len of each line, its output_len and its timestamp in seconds.
  // mooncake: timestamp in milliseconds, input_length, output_length and hash_ids, one for each 512
  // tokens, equal where texts are equal: https://github.com/kvcache-ai/Mooncake, FAST25-release.
  std::string kind = "random";
  std::string file;
  std::string endpoint = "/v1/completions";
  std::string model;  // "": not named
  int64_t random_input_len = 256;
  int64_t random_output_len = 128;     // and of rows without a length
  double random_range_ratio = 0;       // lengths vary by this share
  std::optional<int64_t> num_prompts;  // none: 100, or all rows of a trace with timestamps
  double trace_speedup = 1;            // timestamps are divided by it
  double trace_length_scale = 1;       // of mooncake: lengths are multiplied by it
  double request_rate = 0;             // a second; 0: all at once. Not of rows with timestamps
  double burstiness = 1;               // shape of the gamma distribution of the gaps; 1: Poisson
  bool ignore_eos = false;
  double temperature = 0;
  int64_t seed = 0;
};

// In the order of their start. A function of `dataset` and its file alone.
// Errors: kInvalidArgument naming the line; kNotFound.
Result<std::vector<LoadRequest>> make_load_requests(const LoadDataset& dataset);

}  // namespace nibble
