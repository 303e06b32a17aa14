// LLMOptions and SamplingParams from JSON objects: names and types are checked here, ranges where
// the values are used.
#include <fmt/format.h>

#include <charconv>
#include <functional>
#include <map>

#include "nibble/api/convert.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/engine/sampling_params.h"
#include "nibble/options.h"
#include "nibble/sampling_params.h"

namespace nibble {
namespace {

using Setter = std::function<Status(const JsonValue&)>;
using Fields = std::map<std::string, Setter, std::less<>>;

Status wrong_type(const JsonValue& value, std::string_view expected) {
  return invalid_argument(fmt::format("is {}, expected {}", value.kind_name(), expected));
}

Status of_element(Status status, std::string_view which) {
  if (!status) status.error().message.insert(0, which);
  return status;
}

Setter set(bool* target) {
  return [target](const JsonValue& value) -> Status {
    if (value.as_boolean() == nullptr) return wrong_type(value, "a boolean");
    *target = *value.as_boolean();
    return {};
  };
}

Setter set(std::string* target) {
  return [target](const JsonValue& value) -> Status {
    if (value.as_string() == nullptr) return wrong_type(value, "a string");
    *target = *value.as_string();
    return {};
  };
}

Setter set(double* target) {
  return [target](const JsonValue& value) -> Status {
    if (!value.as_number()) return wrong_type(value, "a number");
    *target = *value.as_number();
    return {};
  };
}

Setter set(int64_t* target) {
  return [target](const JsonValue& value) -> Status {
    if (value.as_integer() == nullptr) return wrong_type(value, "an integer");
    *target = *value.as_integer();
    return {};
  };
}

Setter set(int* target) {
  return [target](const JsonValue& value) -> Status {
    const int64_t* integer = value.as_integer();
    if (integer == nullptr) return wrong_type(value, "an integer");
    if (*integer != static_cast<int>(*integer)) {
      return invalid_argument(fmt::format("is {}, which is far out of range", *integer));
    }
    *target = static_cast<int>(*integer);
    return {};
  };
}

Setter set(api::KvCacheDtype* target) {
  return [target](const JsonValue& value) -> Status {
    if (value.as_string() == nullptr) return wrong_type(value, "a string");
    const std::string& name = *value.as_string();
    for (const auto& [known, dtype] : {std::pair("auto", api::KvCacheDtype::kAuto),
                                       {"f32", api::KvCacheDtype::kF32},
                                       {"bf16", api::KvCacheDtype::kBf16},
                                       {"fp8", api::KvCacheDtype::kFp8}}) {
      if (name != known) continue;
      *target = dtype;
      return {};
    }
    return invalid_argument(fmt::format("is '{}', expected auto, f32, bf16 or fp8", name));
  };
}

template <typename T>
Setter set(std::optional<T>* target) {
  return [target](const JsonValue& value) -> Status {
    T inner{};
    NIBBLE_TRY(set(&inner)(value));
    *target = std::move(inner);
    return {};
  };
}

// A list, or one element instead of a list of one.
template <typename T>
Setter set(std::vector<T>* target) {
  return [target](const JsonValue& value) -> Status {
    target->clear();
    if (value.as_array() == nullptr) {
      T one{};
      NIBBLE_TRY(set(&one)(value));
      target->push_back(std::move(one));
      return {};
    }
    for (size_t i = 0; i < value.as_array()->size(); ++i) {
      T element{};
      NIBBLE_TRY(of_element(set(&element)((*value.as_array())[i]), fmt::format("[{}] ", i)));
      target->push_back(std::move(element));
    }
    return {};
  };
}

// {"17": -100}: JSON has no other keys than strings.
template <typename T>
Setter set(std::map<int64_t, T>* target) {
  return [target](const JsonValue& value) -> Status {
    if (value.as_object() == nullptr) return wrong_type(value, "an object");
    target->clear();
    for (const auto& [key, element] : *value.as_object()) {
      int64_t number = 0;
      const auto end = key.data() + key.size();
      const auto parsed = std::from_chars(key.data(), end, number);
      if (parsed.ec != std::errc() || parsed.ptr != end) {
        return invalid_argument(fmt::format("has the key '{}', expected integers", key));
      }
      NIBBLE_TRY(of_element(set(&(*target)[number])(element), fmt::format("[{}] ", key)));
    }
    return {};
  };
}

// What other programs understand and what makes no difference here.
Setter no_effect(std::string name) {
  return [name = std::move(name)](const JsonValue&) -> Status {
    log_info(fmt::format("{} is accepted and has no effect", name));
    return {};
  };
}

// What can't be had but as `works`, a JSON value, or null.
Setter only(std::string works, std::string why) {
  return [works = std::move(works), why = std::move(why)](const JsonValue& value) -> Status {
    const std::string given = to_json(value, -1);
    if (given == works) return {};
    return unsupported(fmt::format("is {}, but {}; {} works", given, why, works));
  };
}

Setter refused(std::string why) {
  return [why = std::move(why)](const JsonValue&) -> Status {
    return unsupported(fmt::format("is not supported: {}; leave it out", why));
  };
}

// Members that are null are as good as absent.
Status read_object(const JsonValue& value, const Fields& fields, std::string_view what) {
  if (value.as_object() == nullptr) return wrong_type(value, "an object");
  std::vector<std::string> names;
  for (const auto& [name, setter] : fields) names.push_back(name);
  for (const auto& [key, member] : *value.as_object()) {
    const auto found = fields.find(key);
    if (found == fields.end()) {
      return invalid_argument(
          fmt::format("unknown {} '{}'{}", what, key, did_you_mean(key, names)));
    }
    if (member.is_null()) continue;
    if (Status status = found->second(member); !status) {
      Error error = std::move(status).error();
      // "temperature is ...", "stop[1] is ...", "guided.json is ..."; an unknown name says where.
      const std::string& message = error.message;
      if (!message.starts_with("unknown ")) {
        const bool of_itself = message.starts_with("is ") || message.starts_with("has ");
        const char* join = of_itself ? " " : message.starts_with("[") ? "" : ".";
        error.message = fmt::format("{}{}{}", key, join, message);
      }
      return tl::unexpected(std::move(error));
    }
  }
  return {};
}

template <typename T>
Setter nested(T* target, Fields (*fields)(T*), std::string what) {
  return [=](const JsonValue& value) { return read_object(value, fields(target), what); };
}

template <typename T>
Setter nested(std::optional<T>* target, Fields (*fields)(T*), std::string what) {
  return [=](const JsonValue& value) {
    target->emplace();
    return read_object(value, fields(&**target), what);
  };
}

Fields cache_fields(api::KvCacheConfig* c) {
  Fields fields;
  fields["free_gpu_memory_fraction"] = set(&c->free_gpu_memory_fraction);
  fields["max_tokens"] = set(&c->max_tokens);
  fields["dtype"] = set(&c->dtype);
  fields["tokens_per_block"] = fields["block_size"] = set(&c->tokens_per_block);
  fields["enable_block_reuse"] = set(&c->enable_block_reuse);
  fields["enable_partial_reuse"] = [c](const JsonValue& value) -> Status {
    NIBBLE_TRY(set(&c->enable_partial_reuse)(value));
    if (c->enable_partial_reuse) {
      log_info(
          "kv_cache_config.enable_partial_reuse is accepted and has no effect: whole blocks alone "
          "are reused");
    }
    return {};
  };
  fields["host_cache_size"] = set(&c->host_cache_size);
  return fields;
}

Fields speculative_fields(api::SpeculativeConfig* c) {
  Fields fields;
  fields["decoding_type"] = set(&c->decoding_type);
  for (const char* name : {"num_nextn_predict_layers", "max_draft_len", "num_speculative_tokens"}) {
    fields[name] = set(&c->num_nextn_predict_layers);
  }
  fields["draft_sampling"] = set(&c->draft_sampling);
  fields["adaptive"] = set(&c->adaptive);
  fields["max_concurrency"] = set(&c->max_concurrency);
  fields["draft_len_schedule"] = set(&c->draft_len_schedule);
  fields["acceptance_window"] = set(&c->acceptance_window);
  fields["acceptance_length_threshold"] = set(&c->acceptance_length_threshold);
  fields["use_relaxed_acceptance_for_thinking"] = set(&c->use_relaxed_acceptance_for_thinking);
  fields["relaxed_topk"] = set(&c->relaxed_topk);
  fields["relaxed_delta"] = set(&c->relaxed_delta);
  for (const char* name : {"begin_thinking_phase_token", "end_thinking_phase_token"}) {
    fields[name] = refused("the ids of <think> and </think> are those of the tokenizer");
  }
  for (const char* name : {"use_mtp_vanilla", "mtp_eagle_one_model", "allow_advanced_sampling"}) {
    fields[name] = no_effect(fmt::format("speculative_config.{}", name));
  }
  return fields;
}

Fields graph_fields(api::LLMOptions* o) {
  Fields fields;
  fields["batch_sizes"] = set(&o->cuda_graph_batch_sizes);
  for (const char* name : {"max_batch_size", "enable_padding"}) {
    fields[name] = no_effect(fmt::format("cuda_graph_config.{}", name));
  }
  return fields;
}

// MoE backends of other engines mean our best kernel; the reference is chosen by `backend`.
Setter moe_backend(std::string* backend) {
  return [backend](const JsonValue& value) -> Status {
    std::string name;
    NIBBLE_TRY(set(&name)(value));
    if (name == "VANILLA") {
      *backend = "reference";
      return {};
    }
    for (const char* known :
         {"AUTO", "CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "TRITON"}) {
      if (name != known) continue;
      log_info(fmt::format("MoE backend {} is accepted and means the fastest one here", name));
      return {};
    }
    return invalid_argument(fmt::format(
        "is '{}', expected AUTO, CUTLASS, CUTEDSL, WIDEEP, TRTLLM, DEEPGEMM, TRITON or VANILLA",
        name));
  };
}

Fields moe_fields(std::string* backend) {
  Fields fields;
  fields["backend"] = moe_backend(backend);
  fields["max_num_tokens"] = no_effect("moe_config.max_num_tokens");
  fields["load_balancer"] = refused("experts are not moved while the model runs");
  return fields;
}

Fields scheduler_fields(std::string*) {
  Fields fields;
  fields["capacity_scheduler_policy"] = only(
      "\"MAX_UTILIZATION\"", "sequences are admitted while there is room and may be preempted");
  return fields;
}

Fields llm_fields(api::LLMOptions* o) {
  Fields fields;
  fields["model"] = set(&o->model);
  fields["tokenizer"] = set(&o->tokenizer);
  fields["chat_template"] = set(&o->chat_template);
  fields["device"] = set(&o->device);
  fields["backend"] = set(&o->backend);
  fields["threads"] = set(&o->threads);
  fields["tensor_parallel_size"] = fields["tp_size"] = set(&o->tensor_parallel_size);
  fields["enable_attention_dp"] = set(&o->enable_attention_dp);
  fields["moe_expert_parallel_size"] = fields["ep_size"] = set(&o->moe_expert_parallel_size);
  fields["max_batch_size"] = set(&o->max_batch_size);
  fields["max_num_tokens"] = set(&o->max_num_tokens);
  fields["max_seq_len"] = set(&o->max_seq_len);
  fields["enable_chunked_prefill"] = set(&o->enable_chunked_prefill);
  fields["sampling_defaults"] = set(&o->sampling_defaults);
  fields["logprobs_mode"] = set(&o->logprobs_mode);
  fields["max_new_tokens"] = set(&o->max_new_tokens);
  fields["seed"] = set(&o->seed);
  fields["w4a4"] = set(&o->w4a4);
  fields["show_progress"] = set(&o->show_progress);
  fields["use_cuda_graph"] = set(&o->use_cuda_graph);
  fields["cuda_graph_batch_sizes"] = set(&o->cuda_graph_batch_sizes);
  fields["cuda_graph_config"] = nested(o, graph_fields, "member of cuda_graph_config");
  fields["deterministic"] = fields["cuda_batch_invariant"] = set(&o->cuda_batch_invariant);

  fields["kv_cache_config"] =
      nested(&o->kv_cache_config, cache_fields, "member of kv_cache_config");
  fields["kv_cache_dtype"] = set(&o->kv_cache_config.dtype);
  fields["kv_cache_free_gpu_memory_fraction"] = fields["free_gpu_memory_fraction"] =
      set(&o->kv_cache_config.free_gpu_memory_fraction);
  fields["speculative_config"] =
      nested(&o->speculative_config, speculative_fields, "member of speculative_config");
  fields["moe_config"] = nested(&o->backend, moe_fields, "member of moe_config");
  fields["moe_backend"] = moe_backend(&o->backend);
  fields["scheduler_config"] = nested(&o->backend, scheduler_fields, "member of scheduler_config");

  for (const char* name : {"pipeline_parallel_size", "pp_size", "context_parallel_size", "cp_size",
                           "moe_cluster_parallel_size", "moe_tensor_parallel_size"}) {
    fields[name] = only("1", "this build runs a model on one rank");
  }
  fields["max_beam_width"] = only("1", "there is no beam search");
  for (const char* name :
       {"trust_remote_code", "cuda_graph_max_batch_size", "cuda_graph_padding_enabled",
        "disable_overlap_scheduler", "enable_overlap_scheduler", "guided_decoding_backend",
        "attention_dp_config", "print_iter_log", "enable_iter_perf_stats", "return_perf_metrics",
        "torch_compile_config", "autotuner_enabled", "allreduce_strategy", "stream_interval",
        "load_format", "gpus_per_node"}) {
    fields[name] = no_effect(name);
  }
  for (const char* name :
       {"lora_config", "peft_cache_config", "kv_connector_config", "cache_transceiver_config",
        "sparse_attention_config", "enable_lm_head_tp_in_adp", "offload", "moe_load_balancer"}) {
    fields[name] = refused("this build has nothing of the kind");
  }
  return fields;
}

Fields guided_fields(api::GuidedDecoding* g) {
  Fields fields;
  fields["json"] = [g](const JsonValue& value) -> Status {
    // A schema as an object, or as JSON text.
    if (value.as_string() != nullptr) {
      g->json = *value.as_string();
    } else if (value.as_object() != nullptr || value.as_boolean() != nullptr) {
      g->json = to_json(value, -1);
    } else {
      return wrong_type(value, "a JSON schema: an object, or its text");
    }
    return {};
  };
  fields["json_object"] = set(&g->json_object);
  fields["regex"] = set(&g->regex);
  fields["choice"] = set(&g->choice);
  fields["grammar"] = set(&g->grammar);
  return fields;
}

Fields relaxed_fields(api::RelaxedAcceptance* r) {
  Fields fields;
  fields["enabled"] = set(&r->enabled);
  fields["topk"] = set(&r->topk);
  fields["delta"] = set(&r->delta);
  return fields;
}

Fields sampling_fields(api::SamplingParams* p) {
  Fields fields;
  for (const char* name : {"max_tokens", "max_new_tokens", "max_completion_tokens"}) {
    fields[name] = set(&p->max_tokens);
  }
  fields["min_tokens"] = set(&p->min_tokens);
  fields["temperature"] = set(&p->temperature);
  fields["top_p"] = set(&p->top_p);
  fields["top_k"] = set(&p->top_k);
  fields["min_p"] = set(&p->min_p);
  fields["repetition_penalty"] = set(&p->repetition_penalty);
  fields["presence_penalty"] = set(&p->presence_penalty);
  fields["frequency_penalty"] = set(&p->frequency_penalty);
  fields["logit_bias"] = set(&p->logit_bias);
  fields["seed"] = set(&p->seed);
  fields["n"] = set(&p->n);
  fields["best_of"] = set(&p->best_of);
  fields["stop"] = set(&p->stop);
  fields["stop_token_ids"] = set(&p->stop_token_ids);
  fields["include_stop_str_in_output"] = set(&p->include_stop_str_in_output);
  fields["ignore_eos"] = set(&p->ignore_eos);
  fields["bad"] = set(&p->bad);
  fields["logprobs"] = set(&p->logprobs);
  fields["prompt_logprobs"] = set(&p->prompt_logprobs);
  fields["skip_special_tokens"] = set(&p->skip_special_tokens);
  fields["truncate_prompt_tokens"] = set(&p->truncate_prompt_tokens);
  fields["guided"] = nested(&p->guided, guided_fields, "member of guided");
  fields["thinking"] = set(&p->thinking);
  fields["thinking_budget"] = set(&p->thinking_budget);
  fields["relaxed_acceptance"] = [p](const JsonValue& value) -> Status {
    if (const bool* enabled = value.as_boolean()) {
      if (!*enabled) p->relaxed_acceptance = api::RelaxedAcceptance{.enabled = false};
      return {};  // true: as configured
    }
    p->relaxed_acceptance.emplace();
    return read_object(value, relaxed_fields(&*p->relaxed_acceptance),
                       "member of relaxed_acceptance");
  };
  fields["cache_salt"] = set(&p->cache_salt);
  fields["priority"] = set(&p->priority);
  fields["timeout_seconds"] = set(&p->timeout_seconds);
  return fields;
}

Result<JsonValue> parse_argument(std::string_view json, std::string_view what) {
  auto value = parse_json(json, what);
  if (value) return value;
  return invalid_argument(value.error().message);  // not a file's fault
}

Result<api::LLMOptions> llm_options(std::string_view json) {
  const JsonValue value = NIBBLE_TRY(parse_argument(json, "the options"));
  api::LLMOptions options;
  NIBBLE_TRY(read_object(value, llm_fields(&options), "option"));
  return options;
}

Result<api::SamplingParams> sampling_params(std::string_view json) {
  const JsonValue value = NIBBLE_TRY(parse_argument(json, "the sampling params"));
  api::SamplingParams params;
  NIBBLE_TRY(read_object(value, sampling_fields(&params), "sampling parameter"));
  const SamplingParams converted = NIBBLE_TRY(to_engine(params, {}, 0));
  NIBBLE_TRY(validate(converted));
  return params;
}

}  // namespace

api::Result<api::LLMOptions> api::parse_llm_options(std::string_view json) {
  return to_api(llm_options(json));
}

api::Result<api::SamplingParams> api::parse_sampling_params(std::string_view json) {
  return to_api(nibble::sampling_params(json));
}

}  // namespace nibble
