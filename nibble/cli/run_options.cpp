#include "nibble/cli/run_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
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

  command
      .add_option("--repetition-penalty", o->repetition_penalty,
                  "Of tokens in prompt and output, above 0, at most 10 [1]")
      ->type_name("X")
      ->group(sampling);
  command
      .add_option("--presence-penalty", o->presence_penalty, "Of tokens in the output, -2..2 [0]")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--frequency-penalty", o->frequency_penalty, "For each time, -2..2 [0]")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--min-tokens", o->min_tokens, "No end before so many tokens [0]")
      ->type_name("N")
      ->group(sampling);

  const std::string guided = "Form of the answer (behind its thinking)";
  command.add_option("--guided-json", o->guided_json, "JSON of the schema in FILE")
      ->type_name("FILE")
      ->group(guided);
  command.add_flag("--guided-json-object", o->guided_json_object, "Any JSON object")->group(guided);
  command.add_option("--guided-regex", o->guided_regex, "A text of this regular expression")
      ->type_name("REGEX")
      ->group(guided);
  command
      .add_option("--guided-choice", o->guided_choice, "One of these texts; given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(guided);
  command
      .add_option("--thinking-budget", o->thinking_budget,
                  "Tokens of thinking after which </think> is forced [none]")
      ->type_name("N")
      ->group(guided);

  const std::string engine = "Engine";
  add_backend_options(command, &o->backend, engine);
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
  command
      .add_flag("--adaptive-drafts", o->adaptive_drafts,
                "Fewer drafts where they were refused lately")
      ->group(engine);
  command
      .add_flag("--draft-sampling", o->draft_sampling,
                "Draw drafts instead of taking the likeliest: same law, other text")
      ->group(engine);
  command
      .add_option("--relaxed-topk", o->relaxed_topk,
                  "While thinking accept drafts among the K likeliest: lossy [off]")
      ->type_name("K")
      ->group(engine);
  command
      .add_option("--relaxed-delta", o->relaxed_delta,
                  "And at most X less probable than the likeliest, 0..1 [0]")
      ->type_name("X")
      ->group(engine);

  add_expert_options(command, &o->experts);
  add_parallel_options(command, &o->parallel, "Several ranks");

  const std::string output = "Output";
  command.add_flag("--json", o->json, "One JSON object a prompt instead of streamed text")
      ->group(output);
  command.add_flag("-q,--quiet", o->quiet, "No progress and no statistics on stderr")
      ->group(output);
  command.add_flag("-v,--verbose", o->verbose, "Where the memory went, too, on stderr")
      ->group(output);
}

namespace {

Result<std::optional<Guided>> guided_of(const RunOptions& options) {
  std::vector<Guided> asked;
  if (!options.guided_json.empty()) {
    std::string schema = NIBBLE_TRY(read_text_file(options.guided_json));
    asked.push_back({Guided::Kind::kJsonSchema, std::move(schema), {}, true});
  }
  if (options.guided_json_object) asked.push_back({Guided::Kind::kJsonObject, "", {}, true});
  if (!options.guided_regex.empty()) {
    asked.push_back({Guided::Kind::kRegex, options.guided_regex, {}, true});
  }
  if (!options.guided_choice.empty()) {
    asked.push_back({Guided::Kind::kChoice, "", options.guided_choice, true});
  }
  if (asked.size() > 1) {
    return invalid_argument(
        "--guided-json, --guided-json-object, --guided-regex and --guided-choice exclude each "
        "other; give one");
  }
  if (asked.empty()) return std::optional<Guided>();
  return std::optional<Guided>(std::move(asked.front()));
}

}  // namespace

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
  params.repetition_penalty = options.repetition_penalty;
  params.presence_penalty = options.presence_penalty;
  params.frequency_penalty = options.frequency_penalty;
  params.min_tokens = options.min_tokens;
  params.guided = NIBBLE_TRY(guided_of(options));
  params.thinking_budget = options.thinking_budget;
  NIBBLE_TRY(validate(params));
  return params;
}

Result<ModelOptions> model_options(const RunOptions& options) {
  NIBBLE_TRY(validate(options.backend));
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
  const bool wants_drafts = options.adaptive_drafts || options.draft_sampling ||
                            options.relaxed_topk || options.relaxed_delta;
  if (wants_drafts && options.num_drafts == 0) {
    return invalid_argument(
        "--adaptive-drafts, --draft-sampling, --relaxed-topk and --relaxed-delta need "
        "--num-drafts");
  }
  if (options.thinking != "auto" && options.thinking != "on" && options.thinking != "off") {
    return invalid_argument(
        fmt::format("--thinking is '{}', expected auto, on or off", options.thinking));
  }
  if (options.kv_cache_dtype != "auto") NIBBLE_TRY(parse_kv_cache_dtype(options.kv_cache_dtype));
  ModelOptions model;
  apply(options.backend, &model);
  model.nvfp4_activation = options.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  model.load_mtp = options.num_drafts > 0;
  model.max_seq_len = options.max_seq_len;
  model.experts = NIBBLE_TRY(expert_options(options.experts));
  return model;
}

Result<EngineOptions> run_engine_options(const RunOptions& options) {
  EngineOptions engine;
  apply(options.backend, &engine);
  engine.max_batch_size = 1;
  engine.max_num_tokens = std::max(options.chunk_size, 1 + options.num_drafts);
  engine.num_drafts = options.num_drafts;
  engine.draft.adaptive = options.adaptive_drafts;
  engine.draft.draft_sampling = options.draft_sampling;
  if (options.relaxed_topk || options.relaxed_delta) {
    engine.relaxed_thinking = {true, options.relaxed_topk.value_or(1),
                               options.relaxed_delta.value_or(0)};
  }
  if (options.kv_cache_dtype != "auto") {
    engine.kv_cache_dtype = NIBBLE_TRY(parse_kv_cache_dtype(options.kv_cache_dtype));
  }
  return engine;
}

}  // namespace nibble
