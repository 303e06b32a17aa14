// The fields that all of OpenAI's generation requests share.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

ApiResult<bool> read_logit_bias(JsonFields& fields, SamplingParams* params) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return true;
  if (!bias->is_object()) {
    return tl::unexpected(bad_request("logit_bias is no object of token ids and numbers",
                                      "invalid_type", "logit_bias"));
  }
  for (const auto& [key, value] : bias->items()) {
    const bool is_id =
        !key.empty() && key.size() <= 10 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!is_id || !value.is_number()) {
      return tl::unexpected(bad_request(
          fmt::format("logit_bias has the entry \"{}\", expected a token id and a number",
                      key.substr(0, 40)),
          "invalid_type", "logit_bias"));
    }
    params->logit_bias[std::stoll(key)] = value.get<double>();
  }
  return true;
}

ApiResult<bool> read_guided(JsonFields& fields, SamplingParams* params) {
  const auto set = [&](Guided::Kind kind, std::string text, std::vector<std::string> choices,
                       bool strict) {
    Guided guided;
    guided.kind = kind;
    guided.text = std::move(text);
    guided.choices = std::move(choices);
    guided.strict = strict;
    params->guided = std::move(guided);
  };
  const auto as_text = [](const Json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  const auto read_object = [&](const Json& object, const std::string& prefix) -> ApiResult<bool> {
    JsonFields inner(object);
    if (const Json* schema = inner.find(prefix + "json")) {
      set(Guided::Kind::kJsonSchema, as_text(*schema), {}, true);
    }
    if (const Json* object_too = inner.find(prefix + "json_object")) {
      if (object_too->is_boolean() && object_too->get<bool>()) {
        set(Guided::Kind::kJsonObject, "", {}, true);
      }
    }
    const auto regex = NIBBLE_API_TRY(inner.text(prefix + "regex"));
    if (regex) set(Guided::Kind::kRegex, *regex, {}, true);
    auto choices = NIBBLE_API_TRY(inner.texts(prefix + "choice"));
    if (!choices.empty()) set(Guided::Kind::kChoice, "", std::move(choices), true);
    const auto grammar = NIBBLE_API_TRY(inner.text(prefix + "grammar"));
    if (grammar) set(Guided::Kind::kGrammar, *grammar, {}, true);
    return true;
  };
  Json flat = Json::object();
  for (const char* name :
       {"guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"}) {
    if (const Json* value = fields.find(name)) flat[name] = *value;
  }
  NIBBLE_API_TRY(read_object(flat, "guided_"));
  fields.accept({"guided_decoding_backend", "guided_whitespace_pattern"});
  if (const Json* structured = fields.find("structured_outputs")) {
    if (!structured->is_object()) {
      return tl::unexpected(
          bad_request("structured_outputs is no object", "invalid_type", "structured_outputs"));
    }
    NIBBLE_API_TRY(read_object(*structured, ""));
  }
  const Json* format = fields.find("response_format");
  if (format == nullptr) return true;
  const auto bad_format = [](std::string message, std::string param = "response_format") {
    return tl::unexpected(bad_request(std::move(message), "invalid_value", std::move(param)));
  };
  if (!format->is_object()) return bad_format("response_format is no object");
  JsonFields inner(*format);
  const auto type = NIBBLE_API_TRY(inner.text("type"));
  if (!type || *type == "text") {
    if (!type) return bad_format("response_format.type is missing", "response_format.type");
  } else if (*type == "json_object") {
    set(Guided::Kind::kJsonObject, "", {}, true);
  } else if (*type == "json_schema") {
    const Json* holder = inner.find("json_schema");
    if (holder == nullptr || !holder->is_object() || !holder->contains("schema")) {
      return bad_format("response_format.json_schema.schema is missing",
                        "response_format.json_schema");
    }
    const auto strict = holder->find("strict");
    const bool is_strict = strict == holder->end() || !strict->is_boolean() || strict->get<bool>();
    set(Guided::Kind::kJsonSchema, holder->at("schema").dump(), {}, is_strict);
  } else if (*type == "regex" || *type == "grammar") {
    auto text = NIBBLE_API_TRY(inner.text(inner.find("pattern") != nullptr ? "pattern" : *type));
    if (!text) return bad_format(fmt::format("response_format.{} is missing", *type));
    set(*type == "regex" ? Guided::Kind::kRegex : Guided::Kind::kGrammar, *text, {}, true);
  } else {
    return bad_format(fmt::format("response_format.type is '{}', expected text, json_object, "
                                  "json_schema, regex or grammar",
                                  *type),
                      "response_format.type");
  }
  return true;
}

ApiResult<bool> read_stream_fields(JsonFields& fields, GenerationRequest* request) {
  request->stream = NIBBLE_API_TRY(fields.boolean("stream")).value_or(false);
  const Json* options = fields.find("stream_options");
  if (options == nullptr) return true;
  if (!options->is_object()) {
    return tl::unexpected(
        bad_request("stream_options is no object", "invalid_type", "stream_options"));
  }
  if (!request->stream) {
    return tl::unexpected(bad_request("stream_options is given without stream: true",
                                      "invalid_value", "stream_options"));
  }
  JsonFields inner(*options);
  request->include_usage = NIBBLE_API_TRY(inner.boolean("include_usage")).value_or(false);
  request->continuous_usage =
      NIBBLE_API_TRY(inner.boolean("continuous_usage_stats")).value_or(false);
  return true;
}

}  // namespace

bool ServedModel::serves(const std::string& name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

ApiResult<bool> read_common_fields(JsonFields& fields, const ServedModel& model,
                                   GenerationRequest* request) {
  const auto name = NIBBLE_API_TRY(fields.text("model"));
  if (name && !model.serves(*name)) {
    ApiError error = bad_request(fmt::format("the model '{}' is not served here; '{}' is",
                                             name->substr(0, 200), model.names.front()),
                                 "model_not_found", "model");
    error.status = 404;
    error.type = "not_found_error";
    return tl::unexpected(error);
  }
  request->model = name.value_or(model.names.front());
  NIBBLE_API_TRY(read_stream_fields(fields, request));

  SamplingParams& params = request->params;
  params.temperature = NIBBLE_API_TRY(fields.number("temperature")).value_or(model.temperature);
  params.top_p = NIBBLE_API_TRY(fields.number("top_p")).value_or(model.top_p);
  params.top_k = NIBBLE_API_TRY(fields.integer("top_k")).value_or(model.top_k);
  params.min_p = NIBBLE_API_TRY(fields.number("min_p")).value_or(0);
  params.seed = NIBBLE_API_TRY(fields.integer("seed"));
  request->has_seed = params.seed.has_value();
  params.min_tokens = NIBBLE_API_TRY(fields.integer("min_tokens")).value_or(0);
  params.repetition_penalty = NIBBLE_API_TRY(fields.number("repetition_penalty")).value_or(1);
  // Logits are divided by it: a smaller one makes them infinite.
  constexpr double kMinRepetitionPenalty = 1e-4;
  if (params.repetition_penalty > 0 && params.repetition_penalty < kMinRepetitionPenalty) {
    return tl::unexpected(out_of_range(
        "repetition_penalty", fmt::format("repetition_penalty is {}, expected {}..10",
                                          params.repetition_penalty, kMinRepetitionPenalty)));
  }
  params.presence_penalty = NIBBLE_API_TRY(fields.number("presence_penalty")).value_or(0);
  params.frequency_penalty = NIBBLE_API_TRY(fields.number("frequency_penalty")).value_or(0);
  NIBBLE_API_TRY(read_logit_bias(fields, &params));
  params.n = NIBBLE_API_TRY(fields.integer("n")).value_or(1);
  params.best_of = NIBBLE_API_TRY(fields.integer("best_of"));
  params.stop = NIBBLE_API_TRY(fields.texts("stop"));
  params.stop_token_ids = NIBBLE_API_TRY(fields.integers("stop_token_ids"));
  params.include_stop_str_in_output =
      NIBBLE_API_TRY(fields.boolean("include_stop_str_in_output")).value_or(false);
  params.ignore_eos = NIBBLE_API_TRY(fields.boolean("ignore_eos")).value_or(false);
  params.bad = NIBBLE_API_TRY(fields.texts(fields.find("bad") != nullptr ? "bad" : "bad_words"));
  params.skip_special_tokens = NIBBLE_API_TRY(fields.boolean("skip_special_tokens")).value_or(true);
  params.truncate_prompt_tokens = NIBBLE_API_TRY(fields.integer("truncate_prompt_tokens"));
  params.prompt_logprobs = NIBBLE_API_TRY(fields.integer("prompt_logprobs"));
  request->prompt_logprobs = params.prompt_logprobs.has_value();
  params.thinking_budget = NIBBLE_API_TRY(fields.integer("thinking_budget"));
  const auto cache_key = NIBBLE_API_TRY(fields.text("prompt_cache_key"));
  params.cache_salt = NIBBLE_API_TRY(fields.text("cache_salt")).value_or(cache_key.value_or(""));
  params.priority = NIBBLE_API_TRY(fields.integer("priority")).value_or(0);
  if (const Json* relaxed = fields.find("relaxed_acceptance")) {
    RelaxedAcceptance acceptance;
    if (relaxed->is_boolean()) {
      acceptance.enabled = relaxed->get<bool>();
    } else if (relaxed->is_object()) {
      JsonFields inner(*relaxed);
      acceptance.topk = NIBBLE_API_TRY(inner.integer("topk")).value_or(1);
      acceptance.delta = NIBBLE_API_TRY(inner.number("delta")).value_or(0);
    } else {
      return tl::unexpected(bad_request("relaxed_acceptance is neither true or false nor an object",
                                        "invalid_type", "relaxed_acceptance"));
    }
    params.relaxed_acceptance = acceptance;
  }
  NIBBLE_API_TRY(read_guided(fields, &params));
  request->return_token_ids = NIBBLE_API_TRY(fields.boolean("return_token_ids")).value_or(false);
  fields.accept({"user", "metadata", "store", "service_tier", "modalities", "safety_identifier",
                 "prompt_cache_retention", "verbosity", "best_of"});
  if (params.best_of && request->stream && *params.best_of != params.n) {
    return tl::unexpected(bad_request("best_of can't be streamed", "invalid_value", "best_of"));
  }
  return true;
}

ApiResult<bool> check_prompt_length(const GenerationRequest& request, const ServedModel& model) {
  for (const auto& prompt : request.prompts) {
    const auto size = static_cast<int64_t>(prompt.size());
    const bool only_scored = request.params.max_tokens == 0;
    if (size < model.max_seq_len || (only_scored && size == model.max_seq_len)) continue;
    ApiError error = bad_request(
        fmt::format("the prompt has {} tokens, and the context is {} tokens, of which one must "
                    "stay free",
                    size, model.max_seq_len),
        "context_length_exceeded", request.api == Api::kCompletions ? "prompt" : "messages");
    error.extra =
        fmt::format("\"n_prompt_tokens\":{},\"max_model_len\":{}", size, model.max_seq_len);
    return tl::unexpected(error);
  }
  return true;
}

ApiResult<bool> note_unknown_fields(const JsonFields& fields, const ServedModel& model,
                                    GenerationRequest* request) {
  for (std::string& name : fields.unknown()) request->ignored_fields.push_back(std::move(name));
  if (model.strict_request_fields && !request->ignored_fields.empty()) {
    return tl::unexpected(bad_request(
        fmt::format("unknown field '{}'", request->ignored_fields.front().substr(0, 100)),
        "unknown_field", request->ignored_fields.front().substr(0, 100)));
  }
  const Status valid = validate(request->params);
  if (!valid) return tl::unexpected(from_error(valid.error()));
  const Status ids = validate_token_ids(request->params, model.vocab_size);
  if (!ids) return tl::unexpected(from_error(ids.error()));
  return true;
}

}  // namespace nibble
