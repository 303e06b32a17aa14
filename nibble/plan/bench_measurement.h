// What `nibble bench --json` measured: the speed of one model on one machine, taken as it is.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/json.h"
#include "nibble/plan/plan_error.h"

namespace nibble {

// One machine that served `isl` tokens in and `osl` tokens out, at several batch sizes.
struct MeasuredSpeed {
  struct Row {
    double batch = 0;  // sequences that decoded together
    double tokens_per_second = 0;
    double accept_length = 1;
  };
  std::string model;    // the last part of its path
  std::string backend;  // "cpu avx512"
  double isl = 0;
  double osl = 0;
  int draft_tokens = 0;
  std::vector<Row> rows;  // by batch, no batch twice, never empty

  // Output tokens a second; between two batches the time of a step is interpolated. Nothing outside
  // of the batches that were measured.
  std::optional<double> tokens_per_second(double batch) const;
};

// {"model", "backend", "input_len", "output_len", "num_drafts", "rows": [{"batch_size" or
// "concurrency", "output_tokens_per_second", "acceptance_length"}]}; other members are ignored, as
// they say nothing that a plan uses. Errors: bad_file naming the field, found and expected.
PlanResult<MeasuredSpeed> parse_bench(const JsonValue& json, std::string_view where);

}  // namespace nibble
