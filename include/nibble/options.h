// How a model is loaded and run. Names and meanings are TensorRT-LLM's where it has the option.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/export.h"
#include "nibble/result.h"

namespace nibble::api {

enum class KvCacheDtype { kAuto, kF32, kBf16, kFp8 };  // kAuto: what the checkpoint asks for

struct KvCacheConfig {
  // Of the memory that is free when the weights are loaded, above 0, at most 1. None: 0.3.
  std::optional<double> free_gpu_memory_fraction = std::nullopt;
  std::optional<int64_t> max_tokens = std::nullopt;  // at most so many tokens; none: no such limit
  KvCacheDtype dtype = KvCacheDtype::kAuto;
  int64_t tokens_per_block = 32;     // 1..4096
  bool enable_block_reuse = true;    // equal beginnings are computed once
  bool enable_partial_reuse = true;  // no effect: whole blocks alone are reused
  int64_t host_cache_size = 0;       // bytes; only 0 is supported
};

// Draft tokens by the checkpoint's MTP layer.
struct SpeculativeConfig {
  std::string decoding_type = "MTP";     // the only one
  int64_t num_nextn_predict_layers = 1;  // 1..8 drafts a step
  bool draft_sampling = false;           // draw drafts: equal law of the output, another text
  bool adaptive = false;                 // fewer drafts where they are refused
  int64_t max_concurrency = 0;           // no drafts while more sequences run; 0: no limit
  std::map<int64_t, int64_t> draft_len_schedule = {};  // batch size -> drafts
  int64_t acceptance_window = 0;           // with the threshold: windows of the rolling mean
  double acceptance_length_threshold = 0;  // no more drafts once the mean is below
  // Lossy and off by default: between <think> and </think> a draft passes when it is among the
  // relaxed_topk likeliest and at most relaxed_delta below the likeliest.
  bool use_relaxed_acceptance_for_thinking = false;
  int64_t relaxed_topk = 1;  // >= 1
  double relaxed_delta = 0;  // 0..1
};

// What this build can't honour is refused by name when the model is loaded.
struct LLMOptions {
  // A checkpoint's directory, or a name looked up in local model folders. Nothing is downloaded.
  std::string model = {};
  std::string tokenizer = {};        // another directory with a tokenizer.json; empty: the model's
  std::string chat_template = {};    // a file or a built-in name; empty: the model's
  std::string device = "auto";       // auto, cpu, cuda (the first GPU that CUDA shows)
  std::string backend = "auto";      // auto: as `device`, and then cpu; cpu, cuda, reference (plain
                                     // loops); pytorch counts as auto
  int threads = 0;                   // 0: all processors that this process may use
  int64_t tensor_parallel_size = 1;  // ranks, threads of this process; on CUDA one on each GPU
  bool enable_attention_dp = false;  // each rank has sequences of its own
  int64_t moe_expert_parallel_size = 1;  // groups of ranks; 1 with attention DP: all ranks
  int64_t max_batch_size = 32;           // sequences of a step
  int64_t max_num_tokens = 512;          // tokens of a step
  int64_t max_seq_len = 0;               // prompt and output; 0: the model's
  KvCacheConfig kv_cache_config = {};
  bool enable_chunked_prefill = true;
  std::optional<SpeculativeConfig> speculative_config = std::nullopt;
  std::string sampling_defaults = "model";  // where a request is silent: generation_config.json's
                                            // values, or openai: temperature 1, top_p 1
  std::string logprobs_mode = "raw";        // raw, or processed: after masks, penalties, filters
  std::optional<int64_t> max_new_tokens = std::nullopt;  // default of SamplingParams::max_tokens
  int64_t seed = 0;            // base of the seeds of requests without one
  bool w4a4 = false;           // activations in NVFP4 too; needs an NVFP4 checkpoint
  bool show_progress = false;  // on standard error, while loading
  // On a GPU: the same bits for a token also in batches of 128 tokens and more.
  bool cuda_batch_invariant = false;
  // On a GPU: steps of decoding are recorded and replayed; the batch sizes in question are recorded
  // when the model is loaded, without any as they come.
  bool use_cuda_graph = true;
  std::vector<int64_t> cuda_graph_batch_sizes = {};  // each 1..65536
};

// Options from a JSON object, for callers that have names at run time (Python, C, YAML). Knows all
// options of TensorRT-LLM's LLM that serving guides mention: those without effect here are
// accepted, those that can't be honoured are refused. Errors: kInvalidArgument for malformed JSON,
// wrong types and unknown names ("unknown option 'max_batchsize'; did you mean 'max_batch_size'?");
// kUnsupported naming the option and what would work.
NIBBLE_EXPORT Result<LLMOptions> parse_llm_options(std::string_view json);

}  // namespace nibble::api

#ifndef NIBBLE_IMPLEMENTATION
namespace nibble {
using api::KvCacheConfig;
using api::KvCacheDtype;
using api::LLMOptions;
using api::parse_llm_options;
using api::SpeculativeConfig;
}  // namespace nibble
#endif
