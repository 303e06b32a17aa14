#include "nibble/cli/run_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/engine/kv_cache.h"

namespace nibble {

void add_run_options(CLI::App& command, RunOptions* o) {
  command.add_option("MODEL", o->model, "Checkpoint directory, or a model's name [demo]");

  const std::string prompt = "Prompt";
  command.add_option("-p,--prompt", o->prompts, "Text to continue; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(prompt);
  command
      .add_option("-f,--prompt-file", o->prompt_file, "Read the prompt from a file, - for stdin")
      ->type_name("FILE")
      ->group(prompt);
  command.add_flag("--chat", o->chat, "Put each prompt into the chat template as a user message")
      ->group(prompt);
  command.add_option("--system", o->system, "System message of the chat")
      ->type_name("TEXT")
      ->group(prompt);
  command
      .add_option("--chat-template", o->chat_template,
                  "Template file, or deepseek_r1, deepseek_r1_0528, deepseek_v3 [the model's]")
      ->type_name("NAME")
      ->group(prompt);
  command.add_option("--thinking", o->thinking, "auto, on or off [auto]")
      ->type_name("MODE")
      ->group(prompt);
  command.add_flag("--hide-thinking", o->hide_thinking, "Print answers without their thinking")
      ->group(prompt);

  const std::string sampling = "Sampling";
  command.add_option("-n,--max-tokens", o->max_tokens, "Tokens to generate [rest of the context]")
      ->type_name("N")
      ->group(sampling);
  command.add_option("-t,--temperature", o->temperature, "0..2, 0 is greedy [the model's, or 1]")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--top-p", o->top_p, "Nucleus, above 0, at most 1 [the model's, or 1]")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--top-k", o->top_k, "Keep the k most likely tokens, 0 keeps all [0]")
      ->type_name("K")
      ->group(sampling);
  command.add_option("--min-p", o->min_p, "Drop tokens below this share of the likeliest [0]")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--seed", o->seed, "Of the random numbers [0]")
      ->type_name("N")
      ->group(sampling);
  command.add_flag("--ignore-eos", o->ignore_eos, "Go on behind the end-of-sequence token")
      ->group(sampling);

  const std::string engine = "Engine";
  command.add_option("--backend", o->backend, "auto, cpu or reference [auto]")
      ->type_name("NAME")
      ->group(engine);
  command.add_option("--threads", o->threads, "Threads [all processors]")
      ->type_name("N")
      ->group(engine);
  command.add_flag("--w4a4", o->w4a4, "Quantize activations to NVFP4 too, as Blackwell does")
      ->group(engine);
  command
      .add_option("--kv-cache-dtype", o->kv_cache_dtype,
                  "auto, f32, bf16 or fp8 [auto: what the checkpoint asks for]")
      ->type_name("TYPE")
      ->group(engine);
  command.add_option("--max-seq-len", o->max_seq_len, "Context, prompt and output [the model's]")
      ->type_name("N")
      ->group(engine);
  command.add_option("--chunk-size", o->chunk_size, "Tokens of one prefill step [512]")
      ->type_name("N")
      ->group(engine);

  command
      .add_option("--num-drafts", o->num_drafts,
                  "Tokens that the MTP layer proposes in each step, 0..8 [0]")
      ->type_name("N")
      ->group(engine);

  const std::string output = "Output";
  command.add_flag("--json", o->json, "One JSON object a prompt instead of streamed text")
      ->group(output);
  command.add_flag("-q,--quiet", o->quiet, "No progress and no statistics on stderr")
      ->group(output);
}

Result<SamplingParams> sampling_params(const RunOptions& options,
                                       const GenerationConfig& defaults) {
  SamplingParams params;
  params.max_tokens = options.max_tokens;
  params.temperature = options.temperature.value_or(defaults.temperature.value_or(1));
  params.top_p = options.top_p.value_or(defaults.top_p.value_or(1));
  params.top_k = options.top_k.value_or(defaults.top_k.value_or(0));
  params.min_p = options.min_p.value_or(0);
  params.seed = options.seed;
  params.ignore_eos = options.ignore_eos;
  NIBBLE_TRY(validate(params));
  return params;
}

Result<ModelOptions> model_options(const RunOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {  // what make_kernels takes
    return invalid_argument(
        fmt::format("--threads is {}, expected 1..1024, or 0 for all processors", options.threads));
  }
  if (options.max_seq_len < 0) {
    return invalid_argument(
        fmt::format("--max-seq-len is {}, expected 1 or more", options.max_seq_len));
  }
  if (options.chunk_size < 1) {
    return invalid_argument(
        fmt::format("--chunk-size is {}, expected 1 or more", options.chunk_size));
  }
  if (options.num_drafts < 0 || options.num_drafts > 8) {
    return invalid_argument(fmt::format("--num-drafts is {}, expected 0..8", options.num_drafts));
  }
  if (options.thinking != "auto" && options.thinking != "on" && options.thinking != "off") {
    return invalid_argument(
        fmt::format("--thinking is '{}', expected auto, on or off", options.thinking));
  }
  if (options.kv_cache_dtype != "auto") NIBBLE_TRY(parse_kv_cache_dtype(options.kv_cache_dtype));
  ModelOptions model;
  model.backend = options.backend;
  model.threads = options.threads;
  model.nvfp4_activation = options.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  model.load_mtp = options.num_drafts > 0;
  model.max_seq_len = options.max_seq_len;
  return model;
}

Result<EngineOptions> run_engine_options(const RunOptions& options) {
  EngineOptions engine;
  engine.max_batch_size = 1;
  engine.max_num_tokens = std::max(options.chunk_size, 1 + options.num_drafts);
  engine.num_drafts = options.num_drafts;
  if (options.kv_cache_dtype != "auto") {
    engine.kv_cache_dtype = NIBBLE_TRY(parse_kv_cache_dtype(options.kv_cache_dtype));
  }
  return engine;
}

}  // namespace nibble
